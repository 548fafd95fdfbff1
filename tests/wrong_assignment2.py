"""Wrong solutions of assignment 2: what a student writes instead, the checks that it fails and what
they say.
"""

from wrong import Wrong

PARAMETERS = "p.detach().flatten() for p in network.parameters()"
COPY = "p.copy_(theta[at : at + p.numel()].view(p.shape))"
BY_NAME = "for _, p in sorted(network.named_parameters())"
ORDER = "torch.randperm(len(labels), generator=generator)"
EPOCH = "    for _ in range(epochs):\n        order = " + ORDER
UPDATE = "theta -= lr * gradient"
TEACHER = "k = int(torch.randint(len(teachers), (), generator=generator))"
START = "torch.randint(max_start_epoch,"
SEGMENT = "return teachers[k, i], teachers[k, i + expert_epochs]"
LOSS = "return error.square().sum() / way.square().sum()"
INNER = "loss = F.cross_entropy(network(theta, images), labels)"
INNER_GRADIENT = "(gradient,) = grad(loss, theta, create_graph=True)"
STUDENT = "theta = theta - alpha * gradient"
IMAGES = "new_images = images - image_lr * to_images"
ALPHA = "new_alpha = alpha - alpha_lr * to_alpha"

WRONG = {
    # Task 1
    "the buffers too": Wrong(
        "vector",
        {PARAMETERS: "p.flatten().float() for p in network.state_dict().values()"},
        {"vector-check": "has the buffers"},
    ),
    "layers by name, on both ways": Wrong(
        "vector",
        {
            PARAMETERS: f"p.detach().flatten() {BY_NAME}",
            "for p in network.parameters():": f"{BY_NAME}:",
        },
        {"vector-check": "where 10 comes before 2"},
    ),
    "only loaded by name": Wrong(
        "vector",
        {"for p in network.parameters():": f"{BY_NAME}:"},
        {"vector-check": "filled in the order of their names"},
    ),
    "a vector with its graph": Wrong(
        "vector", {"p.detach().": "p."}, {"vector-check": "hangs on a graph"}
    ),
    "the network in the snapshot": Wrong(
        "vector",
        {COPY: COPY.replace("p.copy_(", "p.data = (")},
        {"vector-check": "overwrites the snapshot"},
    ),
    "PyTorch's way back": Wrong(
        "vector",
        {
            "return network": "nn.utils.vector_to_parameters(theta, network.parameters())\n    "
            "return network"
        },
        {"vector-check": "overwrites the snapshot"},
    ),
    "a copy is filled": Wrong(
        "vector",
        {"at = 0": "from copy import deepcopy\n\n    at, network = 0, deepcopy(network)"},
        {"vector-check": "leaves the network as it was"},
    ),
    "each parameter from the beginning": Wrong(
        "vector", {"at += p.numel()": "pass"}, {"vector-check": "from the beginning of theta"}
    ),
    # Task 2
    "no initialization": Wrong(
        "train-teacher",
        {"kept = [start.clone()]": "kept = []"},
        {"snapshots-check": "the initialization is missing"},
    ),
    "no last epoch": Wrong(
        "train-teacher",
        {"range(epochs)": "range(epochs - 1)"},
        {"snapshots-check": "the last epoch is missing"},
    ),
    "snapshots that are no copies": Wrong(
        "train-teacher",
        {"theta.detach().clone()": "theta.detach()"},
        {"snapshots-check": "(`clone`) after each epoch"},
    ),
    "no copies at all": Wrong(
        "train-teacher",
        {
            "kept = [start.clone()]": "kept = [theta.detach()]",
            "theta.detach().clone()": "theta.detach()",
        },
        {"snapshots-check": "(`clone`) of each"},
    ),
    "the initialization is trained": Wrong(
        "train-teacher",
        {"theta = start.clone()": "theta = start"},
        {"snapshots-check": "changes a tensor", "batches-check": "changes a tensor"},
    ),
    "snapshots with their graph": Wrong(
        "train-teacher",
        {"theta.detach().clone()": "theta.clone()"},
        {"snapshots-check": "hang on a graph"},
    ),
    "a snapshot after each update": Wrong(
        "train-teacher",
        {f"{UPDATE}\n        kept": f"{UPDATE}\n            kept"},
        {"snapshots-check": "after each update"},
    ),
    "a list of snapshots": Wrong(
        "train-teacher",
        {"torch.stack(kept)": "kept"},
        {"snapshots-check": "should return a tensor"},
    ),
    "momentum": Wrong(
        "train-teacher",
        {
            "kept = [start.clone()]": "kept, speed = [start.clone()], 0",
            UPDATE: "speed = 0.9 * speed + gradient\n                theta -= lr * speed",
        },
        {"snapshots-check": "there is momentum"},
    ),
    "gradients that add up": Wrong(
        "train-teacher",
        {"(gradient,) = grad(loss, theta)": "loss.backward()\n            gradient = theta.grad"},
        {"snapshots-check": "gradients add up"},
    ),
    "the sum of the losses": Wrong(
        "train-teacher",
        {"labels[index])": 'labels[index], reduction="sum")'},
        {"snapshots-check": "the sum over"},
    ),
    "labels of other images": Wrong(
        "train-teacher",
        {"labels[index]": "labels[: len(index)]"},
        {"snapshots-check": "labels are not"},
    ),
    "the last batch dropped": Wrong(
        "train-teacher",
        {"order.split(batch)": "order.split(batch)[: len(labels) // batch]"},
        {"batches-check": "is left out"},
    ),
    "not shuffled": Wrong(
        "train-teacher",
        {ORDER: "torch.arange(len(labels))"},
        {"batches-check": "in which they are stored"},
    ),
    "shuffled once": Wrong(
        "train-teacher",
        {EPOCH: f"    order = {ORDER}\n    for _ in range(epochs):"},
        {"batches-check": "every epoch has the same order"},
    ),
    "drawn with replacement": Wrong(
        "train-teacher",
        {
            ORDER: "torch.randint(\n            len(labels), labels.shape, generator=generator\n "
            "       )"
        },
        {"batches-check": "some images come twice"},
    ),
    "the global random state": Wrong(
        "train-teacher",
        {", generator=generator": ""},
        {"batches-check": "the generator that is passed in"},
    ),
    "the notebook's batch": Wrong(
        "train-teacher",
        {"order.split(batch)": "order.split(128)"},
        {"batches-check": "images at once"},
    ),
    # Task 3
    "a start of I+": Wrong(
        "draw-segment",
        {START: "torch.randint(max_start_epoch + 1,"},
        {"segment-check": "the paper draws i < I+"},
    ),
    "never from the initialization": Wrong(
        "draw-segment",
        {START: "torch.randint(1, max_start_epoch,"},
        {"segment-check": "ever begins at epoch 0"},
    ),
    "the upper end excluded twice": Wrong(
        "draw-segment",
        {START: "torch.randint(max_start_epoch - 1,"},
        {"segment-check": "excludes its upper end"},
    ),
    "any epoch of the teacher": Wrong(
        "draw-segment",
        {START: "torch.randint(\n        teachers.shape[1] - expert_epochs,"},
        {"segment-check": "the paper draws i < I+"},
    ),
    "an epoch short": Wrong(
        "draw-segment",
        {"i + expert_epochs": "i + expert_epochs - 1"},
        {"segment-check": "1 epochs after the start"},
    ),
    "always the notebook's K": Wrong(  # right in the visible part of the check
        "draw-segment",
        {"i + expert_epochs": "i + 2"},
        {"segment-check": "2 epochs after the start, and not 3"},
    ),
    "target first": Wrong(
        "draw-segment",
        {SEGMENT: "return teachers[k, i + expert_epochs], teachers[k, i]"},
        {"segment-check": "target are swapped"},
    ),
    "two teachers": Wrong(
        "draw-segment",
        {"teachers[k, i + expert": "teachers[k - 1, i + expert"},
        {"segment-check": "two different teachers"},
    ),
    "always the first teacher": Wrong(
        "draw-segment", {TEACHER: "k = 0"}, {"segment-check": "is never drawn"}
    ),
    "teachers from the global random state": Wrong(
        "draw-segment",
        {TEACHER: "k = int(torch.randint(len(teachers), ()))"},
        {"segment-check": "equal generators give different segments"},
    ),
    # Task 4
    "not normalized": Wrong(
        "matching-loss", {LOSS: "return error.square().sum()"}, {"loss-check": "is not divided"}
    ),
    "normalized by the student's way": Wrong(
        "matching-loss",
        {"way = start - target": "way = start - student"},
        {"loss-check": "the student's own way"},
    ),
    "distances instead of squares": Wrong(
        "matching-loss",
        {LOSS: "return error.norm() / way.norm()"},
        {"loss-check": "distances, not their squares"},
    ),
    "a mean over a sum": Wrong(
        "matching-loss",
        {"error.square().sum()": "error.square().mean()"},
        {"loss-check": "a mean over the parameters"},
    ),
    "distance from the start": Wrong(
        "matching-loss",
        {"student - target": "student - start"},
        {"loss-check": "are target and start swapped"},
    ),
    "entry by entry": Wrong(
        "matching-loss",
        {LOSS: "return (error / way).square().mean()"},
        {"loss-check": "divided by its own way"},
    ),
    "a constant to be safe": Wrong(
        "matching-loss",
        {"way.square().sum()": "(way.square().sum() + 1e-8)"},
        {"loss-check": "is anything added"},
    ),
    "a plain number": Wrong(
        "matching-loss",
        {LOSS: "return (error.square().sum() / way.square().sum()).item()"},
        {"loss-check": "plain number"},
    ),
    "a detached student": Wrong(
        "matching-loss",
        {"error = student -": "error = student.detach() -"},
        {"loss-check": "no gradient leads"},
    ),
    "the module's own loss": Wrong(
        "matching-loss",
        {LOSS: 'return ddpp.matching_loss(student, target, start, 0.0, "none")'},
        {"loss-check": "write it yourself"},
    ),
    # Task 5
    "no graph of the gradients": Wrong(
        "student-updates",
        {", create_graph=True": ""},
        {"gradients-check": "no gradient reaches the images"},
    ),
    "detached in the loop": Wrong(
        "student-updates",
        {INNER: f"theta = theta.detach().requires_grad_()\n        {INNER}"},
        {"gradients-check": "the last update only"},
    ),
    "gradients at a detached student": Wrong(
        "student-updates",
        {
            INNER: "at = theta.detach().requires_grad_()\n        loss = "
            "F.cross_entropy(network(at, images), labels)",
            "grad(loss, theta,": "grad(loss, at,",
        },
        {"gradients-check": "leaves out how earlier updates"},
    ),
    "updates in place": Wrong(
        "student-updates",
        {STUDENT: "with torch.no_grad():\n            theta -= alpha * gradient"},
        {"gradients-check": "no gradient reaches the images"},
    ),
    "alpha as a number": Wrong(
        "student-updates",
        {STUDENT: "theta = theta - alpha.item() * gradient"},
        {"gradients-check": "reaches alpha"},
    ),
    "images without a gradient": Wrong(
        "student-updates",
        {"network(theta, images)": "network(theta, images.detach())"},
        {"gradients-check": "no gradient reaches the images"},
    ),
    "up the hill": Wrong(
        "student-updates",
        {STUDENT: "theta = theta + alpha * gradient"},
        {"student-check": "goes up the gradient"},
    ),
    "one update short": Wrong(
        "student-updates",
        {"range(steps)": "range(steps - 1)"},
        {"student-check": "3 updates instead of 4"},
    ),
    "the student's losses summed": Wrong(
        "student-updates",
        {", labels)": ', labels, reduction="sum")'},
        {"student-check": "the sum over the images"},
    ),
    "the module's own gradient": Wrong(
        "student-updates",
        {
            INNER_GRADIENT: "how = (labels, None, True)\n"
            "        gradient = ddpp.unrolling.gradient(network, theta, images, *how)",
        },
        {"student-check": "write it yourself", "gradients-check": "write it yourself"},
    ),
    # Task 6
    "images up the gradient": Wrong(
        "distil-step",
        {IMAGES: "new_images = images + image_lr * to_images"},
        {"step-check": "images go up the gradient"},
    ),
    "alpha is not learned": Wrong(
        "distil-step", {ALPHA: "new_alpha = alpha.detach()"}, {"step-check": "alpha does not"}
    ),
    "one learning rate for both": Wrong(
        "distil-step",
        {ALPHA: "new_alpha = alpha - image_lr * to_alpha"},
        {"step-check": "alpha changes by image_lr"},
    ),
    "new images with their graph": Wrong(
        "distil-step",
        {"torch.no_grad()": "torch.enable_grad()"},
        {"step-check": "the images that you return still hang"},
    ),
    "the loss with its graph": Wrong(
        "distil-step",
        {"value.detach()": "value"},
        {"step-check": "the loss that you return still hangs"},
    ),
    "the old images are changed": Wrong(
        "distil-step",
        {IMAGES: "new_images = images.sub_(image_lr * to_images)"},
        {"step-check": "changes a tensor"},
    ),
    "target and start swapped": Wrong(
        "distil-step",
        {"alpha), target, start)": "alpha), start, target)"},
        {"step-check": "start and target are swapped"},
    ),
    "the segment the wrong way round": Wrong(
        "distil-step",
        {"start, target = segment": "target, start = segment"},
        {"step-check": "the segment is (start"},
    ),
}
