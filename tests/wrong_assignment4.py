"""Wrong solutions of assignment 4: what a student writes instead, the checks that it fails and what
they say.
"""

from wrong import Wrong

RULE = "return teacher.abs() >= epsilon * typical"
CONFIG = "config = replace(recipe.distill, rule=rule, epsilon=epsilon, seed=seed)"
TESTED_SEED = "        seed=seed,\n"
MEAN = "return tested.mean"
VARIANCE = "variance = sum((d - mean) ** 2 for d in differences) / (n - 1)"
HALF = "half = T_95[n - 1] * error"
RUNS = "run_once(setting, seed, data, teachers, recipe) for seed in seeds"
BARS = 'axis.errorbar(place + 0.1, values.mean(), error, fmt="s", capsize=4)'
LABELS = 'axis.set(xlabel="rule, epsilon", ylabel="test accuracy (%)")'
LINES = 'axis.plot(places, seed, "o-", color="grey", ms=4, lw=0.8, alpha=0.6)'

WRONG = {
    # Task 1
    "a rule that draws anew each time": Wrong(
        "my-rule",
        {
            "my_epsilon = 0.15": "torch.manual_seed(0)\nmy_epsilon = 0.15",
            RULE: "return torch.rand(len(teacher)) > 0.8",
        },
        {"my-rule-check": "two masks for one pair", "study-check": "run the study again"},
    ),
    "numbers for a mask": Wrong(
        "my-rule",
        {RULE: f"{RULE.replace('teacher', '(teacher')}).float()"},
        {"my-rule-check": "torch.bool"},
    ),
    "the places of what is kept": Wrong(
        "my-rule",
        {RULE: "return (teacher.abs() >= epsilon * typical).nonzero().flatten()"},
        {"my-rule-check": "should return shape"},
    ),
    "nothing is pruned": Wrong(
        "my-rule",
        {RULE: "return teacher.abs() >= 0 * typical"},
        {"my-rule-check": "prunes nothing"},
    ),
    "a threshold above everything": Wrong(
        "my-rule",
        {RULE: "return teacher.abs() >= epsilon / typical"},
        {"my-rule-check": "keeps nothing"},
    ),
    "ddpp's rule": Wrong(
        "my-rule",
        {RULE: "return RULES['signed'](student, teacher, epsilon)"},
        {"my-rule-check": "the task is to write it yourself"},
    ),
    "an epsilon in percent": Wrong(
        "my-rule",
        {"my_epsilon = 0.15": "my_epsilon = 15"},
        {"my-rule-check": "from 0 to below 1"},
    ),
    # Task 2
    "the seed for the distillation only": Wrong(
        "run-once", {TESTED_SEED: ""}, {"run-once-check": "does not reach the evaluation"}
    ),
    "the seed for the evaluation only": Wrong(
        "run-once",
        {CONFIG: "config = replace(recipe.distill, rule=rule, epsilon=epsilon)"},
        {"run-once-check": "does not reach the distillation"},
    ),
    "a seed of its own for each setting": Wrong(
        "run-once",
        {CONFIG: f"seed = seed + round(1000 * epsilon)\n    {CONFIG}"},
        {"run-once-check": "are no pairs"},
    ),
    "a seed from nowhere": Wrong(
        "run-once",
        {CONFIG: f"seed = int(torch.randint(10**6, ()))\n    {CONFIG}"},
        {"run-once-check": "for the same arguments", "study-check": "run the study again"},
    ),
    "epsilon forgotten": Wrong(
        "run-once",
        {CONFIG: "config = replace(recipe.distill, rule=rule, seed=seed)"},
        {"run-once-check": "takes no notice of epsilon"},
    ),
    "rule forgotten": Wrong(
        "run-once",
        {CONFIG: "config = replace(recipe.distill, epsilon=epsilon, seed=seed)"},
        {"run-once-check": "takes no notice of the rule"},
    ),
    "the first network alone": Wrong(
        "run-once", {MEAN: "return tested.final[0]"}, {"run-once-check": "the first network"}
    ),
    "a fraction": Wrong(
        "run-once", {MEAN: "return tested.mean / 100"}, {"run-once-check": "percent are asked for"}
    ),
    "an evaluation": Wrong(
        "run-once",
        {MEAN: "return tested"},
        {"run-once-check": "returns an Evaluation", "study-check": "one number"},
    ),
    # Task 3
    "two independent groups": Wrong(
        "paired",
        {
            VARIANCE: "mean_a, mean_b = sum(a) / n, sum(b) / n\n"
            "    variance = sum((x - mean_a) ** 2 for x in a) / (n - 1)\n"
            "    variance += sum((y - mean_b) ** 2 for y in b) / (n - 1)"
        },
        {"paired-check": "two independent groups"},
    ),
    "n for n - 1": Wrong(
        "paired", {"/ (n - 1)": "/ n"}, {"paired-check": "with n - 1, not with n"}
    ),
    "a standard deviation for an error": Wrong(
        "paired",
        {"(variance / n) ** 0.5": "variance**0.5"},
        {"paired-check": "the standard deviation of the differences"},
    ),
    "a variance for an error": Wrong(
        "paired",
        {"(variance / n) ** 0.5": "variance / n"},
        {"paired-check": "a variance: take its root"},
    ),
    "the difference the wrong way round": Wrong(
        "paired", {"[x - y for": "[y - x for"}, {"paired-check": "the wrong way round"}
    ),
    "differences as fractions": Wrong(
        "paired", {"[x - y for": "[(x - y) / 100 for"}, {"paired-check": "a fraction: give points"}
    ),
    "differences in percent of the baseline": Wrong(
        "paired",
        {"mean = sum(differences) / n": "mean = 100 * (sum(a) / sum(b) - 1)"},
        {"paired-check": "relative to the baseline"},
    ),
    "an error for five seeds, whatever n is": Wrong(
        "paired",
        {
            VARIANCE: "variance = sum((d - mean) ** 2 for d in differences) / 4",
            "(variance / n)": "(variance / 5)",
        },
        {"paired-check": "your error is"},
    ),
    "1.96 for t": Wrong(
        "interval", {HALF: "half = 1.96 * error"}, {"interval-check": "normal distribution"}
    ),
    "n degrees of freedom": Wrong(
        "interval", {"T_95[n - 1]": "T_95[n]"}, {"interval-check": "n differences have n - 1"}
    ),
    "t for five seeds, whatever n is": Wrong(
        "interval", {"T_95[n - 1]": "2.776"}, {"interval-check": "3 seeds, which should"}
    ),
    "one error on each side": Wrong(
        "interval", {HALF: "half = error"}, {"interval-check": "one error wide"}
    ),
    "a verdict from the mean alone": Wrong(
        "verdict",
        {"if low > 0": "if mean > 0", "if high < 0": "if mean < 0"},
        {"verdict-check": "whatever its mean"},
    ),
    "an interval that ends at 0 excludes it": Wrong(
        "verdict", {"if low > 0": "if low >= 0"}, {"verdict-check": "at its end"}
    ),
    "a verdict the wrong way round": Wrong(
        "verdict",
        {"if low > 0": "if 0 > high", "if high < 0": "if 0 < low"},
        {"verdict-check": "above 0"},
    ),
    "the visible answer, by heart": Wrong(
        "verdict",
        {"if low > 0:": "if mean == 1.2:", "if high < 0:": "if mean == -1.2:"},
        {"verdict-check": "is right"},
    ),
    "a verdict with a p-value": Wrong(
        "verdict",
        {'return "cannot tell"': 'return "not significant"'},
        {"verdict-check": "it should say"},
    ),
    # Tasks 5 and 6
    "numbers typed in": Wrong(
        "study",
        {f"{RUNS}\n": "25.0 + epsilon for epsilon in seeds\n"},
        {"study-check": "run the study again"},
    ),
    "other seeds for each setting": Wrong(
        "study",
        {
            RUNS: "run_once(setting, seed + len(results), data, teachers, recipe)\n        for "
            "seed in seeds"
        },
        {"study-check": "the same ones for every setting"},
    ),
    "two seeds": Wrong("study", {"[0, 1, 2, 3, 4]": "[0, 1]"}, {"study-check": "at least 3"}),
    "no baseline": Wrong("study", {'("none", 0.0), ': ""}, {"study-check": "no baseline"}),
    "baseline alone": Wrong(
        "study",
        {', ("signed", 0.7), ("mine", my_epsilon)': ","},
        {"study-check": "with what is the baseline"},
    ),
    "a seed left out": Wrong(
        "study",
        {"for seed in seeds": "for seed in seeds[len(results) // 2 :]"},
        {"study-check": "one for each seed"},
    ),
    "a name for a setting": Wrong(
        "study",
        {"results[setting] =": "results[setting[0]] ="},
        {"study-check": "a pair (rule, epsilon)"},
    ),
    "bars without errors": Wrong(
        "plot-results",
        {BARS: BARS.replace("error, ", ""), LINES: "pass"},
        {"plot-results-check": "without their scatter"},
    ),
    "no labels": Wrong("plot-results", {LABELS: "pass"}, {"plot-results-check": "a label"}),
    "the axes for the figure": Wrong(
        "plot-results",
        {"return fig": "return axis"},
        {"plot-results-check": "should return the Figure"},
    ),
    "the notebook's results, whatever is given": Wrong(
        "plot-results",
        {"fig, axis = plt": "results = globals()['results']\n    fig, axis = plt"},
        {"plot-results-check": "`results` of the notebook"},
    ),
}
