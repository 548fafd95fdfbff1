"""Wrong solutions of assignment 3: what a student writes instead, the checks that it fails and what
they say.
"""

from wrong import Wrong

RATIOS = "a, b = student / teacher, teacher / student\n    return"
APART = (
    "apart = student.sign() * teacher.sign() < 0\n    return (smaller >= epsilon * larger) & ~apart"
)
LEAST = "return ~(least < epsilon * most)"
RATIO = "return error.sum() / way.sum()"
ERROR = "error = (student - teacher).square() * keep"
WAY = "way = (start - teacher).square() * keep"
MASK = "keep = keep_mask(student.detach(), teacher, epsilon)"
CONSTANTS = "teacher, start = teacher.detach(), start.detach()"
SHARES = "100 * float((~part).float().mean())"
APART_SHARE = "return 100 * int((apart & ~keep).sum()) / max(pruned, 1)"
ASTRAY = "astray = error > way"
GONE = "return torch.where(astray, -teacher, student)"

WRONG = {
    # Task 1
    "similarity without its sign": Wrong(
        "similarity",
        {"sign * (smaller / larger)": "smaller / larger"},
        {"similarity-check": "has no sign"},
    ),
    "student over teacher, whichever is larger": Wrong(
        "similarity",
        {"torch.where(larger > 0, sign * (smaller / larger), 1.0)": "student / teacher"},
        {"similarity-check": "student / teacher throughout"},
    ),
    "the lower of the two ratios": Wrong(
        "similarity",
        {
            "torch.where(larger > 0, sign * (smaller / larger), 1.0)": "torch.minimum(\n"
            "        student / teacher, teacher / student\n    )"
        },
        {"similarity-check": "lower ratio"},
    ),
    "0 over 0 as it comes": Wrong(
        "similarity",
        {"torch.where(larger > 0, sign * (smaller / larger), 1.0)": "sign * (smaller / larger)"},
        {"similarity-check": "NaN or infinity"},
    ),
    "a pair of zeros has similarity 0": Wrong(
        "similarity", {"1.0)": "0.0)"}, {"similarity-check": "for the pair (0, 0) it should be 1"}
    ),
    "a small constant against division by zero": Wrong(
        "similarity",
        {
            "torch.where(larger > 0, sign * (smaller / larger), 1.0)": "torch.where(\n"
            "        larger > 0, sign * smaller / (larger + 1e-8), 1.0\n    )"
        },
        {"similarity-check": "do you add a constant"},
    ),
    "the similarity of chapter 4, which squares": Wrong(
        "similarity",
        {
            "return torch.where(larger > 0, sign * "
            "(smaller / larger), 1.0)": "square = larger.square()\n"
            "    return torch.where(square > 0, student * teacher / square, 1.0)"
        },
        {"similarity-check": "do you square"},
    ),
    "ddpp's similarity": Wrong(
        "similarity",
        {
            "return torch.where(larger > 0, sign * "
            "(smaller / larger), 1.0)": "return ddpp.similarity(student, teacher)"
        },
        {"similarity-check": "the task is to write it yourself"},
    ),
    # Tasks 2 and 3
    "the literal reading by size": Wrong(
        "rules",
        {" & ~apart": ""},
        {"rules-check": "compares sizes only", "edges-check": "opposite signs"},
    ),
    "the reading by size with signs": Wrong(
        "rules",
        {LEAST: "apart = student * teacher < 0\n    " + LEAST + " & ~apart"},
        {"rules-check": "prunes pairs for their opposite signs", "edges-check": "opposite signs"},
    ),
    "True for pruned": Wrong(
        "rules",
        {LEAST: "return least < epsilon * most"},
        {
            "rules-check": "`keep_magnitude` is the wrong way round",
            "edges-check": "`keep_magnitude` prunes the pair",
        },
    ),
    "one of the two ratios": Wrong(
        "rules",
        {LEAST: "return ~((student / teacher).abs() < epsilon)"},
        {"rules-check": "student / teacher only", "edges-check": "0 beside something else"},
    ),
    "`and` for `or`": Wrong(
        "rules",
        {APART: f"{RATIOS} ~((a < epsilon) & (b < epsilon))"},
        {"rules-check": "one is enough", "edges-check": "0 beside something else is pruned"},
    ),
    "0.1 for epsilon": Wrong(
        "rules",
        {LEAST: "return ~(least < 0.1 * most)"},
        {
            "rules-check": "takes no notice of epsilon",
            "edges-check": "`keep_magnitude` keeps the pair",
        },
    ),
    "numbers for a mask": Wrong(
        "rules",
        {LEAST: "return 1.0 - (least < epsilon * most).float()"},
        {"rules-check": "torch.bool", "edges-check": "torch.bool"},
    ),
    "ddpp's mask": Wrong(
        "rules",
        {APART: "return keep_mask(student, teacher, epsilon)"},
        {"rules-check": "the task is to write it yourself", "edges-check": "only the ratio counts"},
    ),
    "pruned at the threshold": Wrong(
        "rules",
        {LEAST: "return (least > epsilon * most) | (most == 0)"},
        {"edges-check": "exactly epsilon"},
    ),
    "kept where both ratios are at least epsilon, which 0/0 is not": Wrong(
        "rules",
        {LEAST: f"{RATIOS} (a.abs() >= epsilon) & (b.abs() >= epsilon)"},
        {"edges-check": "a pair 0, 0 is equal and kept"},
    ),
    "-1 / 0 is below 0": Wrong(
        "rules",
        {APART: f"{RATIOS} ~((a < epsilon) | (b < epsilon))"},
        {"edges-check": "at epsilon 0, zero beside something else is kept"},
    ),
    "ratios with a small constant below the line": Wrong(
        "rules",
        {
            LEAST: "a, b = student / (teacher + 1e-10), teacher / (student + 1e-10)\n"
            "    return (a.abs() >= epsilon) & (b.abs() >= epsilon) | (most == 0)"
        },
        {"edges-check": "equals are kept"},
    ),
    "the rule of chapter 4, which squares": Wrong(
        "rules",
        {LEAST: "return ~((student * teacher).abs() < epsilon * most.square())"},
        {"edges-check": "do you square them"},
    ),
    # Task 4
    "denominator not masked": Wrong(
        "pruned-loss",
        {WAY: WAY.removesuffix(" * keep")},
        {"loss-check": "not out of the teacher's way"},
    ),
    "not divided by the way": Wrong(
        "pruned-loss",
        {RATIO: "return error.sum()"},
        {"loss-check": "not divided by the teacher's way"},
    ),
    "mean over the kept pairs": Wrong(
        "pruned-loss",
        {RATIO: "return error.sum() / keep.sum()"},
        {"loss-check": "mean over the kept pairs"},
    ),
    "nothing pruned": Wrong(
        "pruned-loss",
        {MASK: "keep = 1"},
        {"loss-check": "prunes nothing", "gradient-check": "pruned pairs have a gradient"},
    ),
    "student masked, teacher not": Wrong(
        "pruned-loss",
        {
            ERROR: "error = (student * keep - teacher).square()",
            WAY: "way = (start * keep - teacher).square()",
        },
        {"loss-check": "prunes all but the teacher"},
    ),
    "sign of the loss": Wrong(
        "pruned-loss", {RATIO: "return -error.sum() / way.sum()"}, {"loss-check": "wrong sign"}
    ),
    "the student's own way": Wrong(
        "pruned-loss",
        {WAY: "way = (start - student).square() * keep"},
        {"loss-check": "the student's way"},
    ),
    "lengths, not squares": Wrong(
        "pruned-loss",
        {RATIO: "return (error.sum() / way.sum()).sqrt()"},
        {"loss-check": "divides lengths"},
    ),
    "mask by magnitude": Wrong(
        "pruned-loss",
        {MASK: 'keep = keep_mask(student, teacher, epsilon, "magnitude")'},
        {"loss-check": "prunes by magnitude", "gradient-check": "pruned pairs have a gradient"},
    ),
    "a soft mask": Wrong(
        "pruned-loss",
        {
            MASK: "like = torch.minimum(student / teacher, teacher / student)\n"
            "    keep = torch.sigmoid(50 * (like.detach() - epsilon))"
        },
        {"loss-check": "either kept or pruned", "gradient-check": "pruned pairs have a gradient"},
    ),
    "a constant below the line": Wrong(
        "pruned-loss",
        {RATIO: "return error.sum() / (way.sum() + 1e-8)"},
        {"loss-check": "every pair is pruned here"},
    ),
    "ddpp's loss": Wrong(
        "pruned-loss",
        {RATIO: "return ddpp.matching_loss(student, teacher, start, epsilon)"},
        {"loss-check": "write it yourself", "gradient-check": "write it yourself"},
    ),
    "a loss without gradient": Wrong(
        "pruned-loss",
        {RATIO: "return (error.sum() / way.sum()).detach()"},
        {"gradient-check": "no gradient reaches"},
    ),
    "a loss as a float": Wrong(
        "pruned-loss",
        {RATIO: "ratio = error.sum() / way.sum()\n    return ratio.item()"},
        {"gradient-check": "a tensor with one number"},
    ),
    "a gradient through the mask": Wrong(
        "pruned-loss",
        {
            MASK: MASK + "\n    soft = torch.sigmoid(10 * (student / teacher - epsilon))\n"
            "    keep = keep + soft - soft.detach()"
        },
        {"gradient-check": "runs through the mask"},
    ),
    "teacher not detached": Wrong(
        "pruned-loss",
        {CONSTANTS: "start = start.detach()"},
        {"gradient-check": "a gradient reaches the teacher"},
    ),
    "start not detached": Wrong(
        "pruned-loss",
        {CONSTANTS: "teacher = teacher.detach()"},
        {"gradient-check": "a gradient reaches the start"},
    ),
    # Task 5
    "share of all parameters": Wrong(
        "what-is-pruned",
        {SHARES: "100 * float((~part).sum()) / len(keep)"},
        {"layers-check": "of all parameters"},
    ),
    "fractions of the layers": Wrong(
        "what-is-pruned",
        {SHARES: "float((~part).float().mean())"},
        {"layers-check": "are fractions"},
    ),
    "share kept": Wrong(
        "what-is-pruned", {SHARES: "100 * float(part.float().mean())"}, {"layers-check": "is kept"}
    ),
    "every layer from the beginning": Wrong(
        "what-is-pruned",
        {SHARES: "100 * float((~keep[: len(part)]).float().mean())"},
        {"layers-check": "from the beginning of the mask"},
    ),
    "the visible answer, by heart": Wrong(
        "what-is-pruned",
        {SHARES: '{"0.weight": 67.5926, "0.bias": 0.0, "2.weight": 25.0, "2.bias": 50.0}[name]'},
        {"layers-check": "percent of them are pruned"},
    ),
    "opposite signs among all pairs": Wrong(
        "what-is-pruned", {"max(pruned, 1)": "len(keep)"}, {"opposite-check": "is of all pairs"}
    ),
    "zero as a sign": Wrong(
        "what-is-pruned",
        {"apart = student.sign() * teacher.sign() < 0": "apart = student.sign() != teacher.sign()"},
        {"opposite-check": "zero"},
    ),
    "how many of the opposite signs": Wrong(
        "what-is-pruned",
        {"pruned = int((~keep).sum())": "pruned = int(apart.sum())"},
        {"opposite-check": "the other way round"},
    ),
    "a mean of nothing": Wrong(
        "what-is-pruned",
        {APART_SHARE: "return 100 * apart[~keep].float().mean()"},
        {"opposite-check": "where nothing is pruned"},
    ),
    # Task 6
    "the largest errors leave": Wrong(
        "escape",
        {ASTRAY: "astray = error > error.quantile(0.65)"},
        {"escape-check": "only: it should be halved"},
    ),
    "too much leaves": Wrong(
        "escape", {ASTRAY: "astray = error > 0"}, {"escape-check": "at least half"}
    ),
    "the student comes closer": Wrong(
        "escape",
        {GONE: "return torch.where(astray, teacher, student)"},
        {"escape-check": "that are still kept"},
    ),
    "the student itself": Wrong(
        "escape", {GONE: "return student"}, {"escape-check": "it should be halved"}
    ),
    "the student in place": Wrong(
        "escape",
        {GONE: "student[astray] = -teacher[astray]\n    return student"},
        {"escape-check": "changes a tensor that it is given"},
    ),
}
