"""Wrong solutions of assignment 1: what a student writes instead, the checks that it fails and what
they say.
"""

from wrong import Wrong

ROTATED = "(directions * scales) @ directions.T"
EIGH = "variances, directions = torch.linalg.eigh(covariance)"
SVD = "_, s, v = torch.linalg.svd(centred, full_matrices=False)"
NORM = "nn.InstanceNorm2d(width, affine=True)"
DRAW = "torch.randint(-reach, reach + 1, (n, 2), generator=generator)"
CUT = "moved.append(image[:, top : top + height, left : left + width])"


def both(says: str, few: str | None = None) -> dict[str, str]:
    """A mistake in ZCA that shows on many images and on few."""
    return {"fit-zca-check": says, "few-images-check": few or says}


WRONG = {
    # Task 1
    "covariance around zero instead of the mean": Wrong(
        "fit-zca",
        {"(images - mean).flatten(1)": "images.flatten(1)"},
        both("mean is not subtracted"),
    ),
    "one mean for each channel": Wrong(
        "fit-zca",
        {"images.mean(0)": "images.mean((0, 2, 3)).view(-1, 1, 1)"},
        both("like one image"),
    ),
    "principal components, not rotated back": Wrong(
        "fit-zca", {ROTATED: "directions * scales"}, both("PCA")
    ),
    "eigenvectors taken as rows": Wrong(
        "fit-zca", {ROTATED: "(directions.T * scales) @ directions"}, both("columns of U")
    ),
    "divided by the variance instead of its root": Wrong(
        "fit-zca", {"rsqrt()": "reciprocal()"}, both("divide by its square root")
    ),
    "multiplied by the root": Wrong(
        "fit-zca", {"rsqrt()": "sqrt()"}, both("colours instead of whitening")
    ),
    "no eps": Wrong(
        "fit-zca",
        {"(variances + eps)": "variances.abs()"},
        both("eps is missing", "not U (S + eps)"),
    ),
    "eps after the root": Wrong(
        "fit-zca",
        {"(variances + eps).rsqrt()": "1 / (variances.abs().sqrt() + eps)"},
        both("after the square root"),
    ),
    "a sum instead of a covariance": Wrong(
        "fit-zca", {" / (len(images) - 1)": ""}, both("not divided by their number")
    ),
    "covariance between images": Wrong(
        "fit-zca",
        {"centred.T @ centred": "centred @ centred.T"},
        both("not the one between images"),
    ),
    "eps always 0.1": Wrong(
        "fit-zca", {"variances + eps": "variances + 0.1"}, {"few-images-check": "always 0.1"}
    ),
    "the directions without variance are lost": Wrong(
        "fit-zca",
        {EIGH: f"{SVD}\n    variances, directions = s**2 / (len(images) - 1), v.T"},
        {"few-images-check": "but not in the others"},
    ),
    "V of a singular value decomposition for U": Wrong(
        "fit-zca",
        {
            EIGH: "directions, variances, v = torch.linalg.svd(covariance)",
            ROTATED: "(directions * scales) @ v",
        },
        {"few-images-check": "the same U on both sides"},
    ),
    "ddpp's own ZCA": Wrong(
        "fit-zca",
        {
            "mean = images.mean(0)": "from ddpp import whitening\n\n    done = "
            "whitening.fit_zca(images, eps)",
            "return mean, matrix": "return done.mean, done.matrix",
            "images - mean": "images - done.mean",
        },
        both("write it yourself"),
    ),
    # Task 2
    "mean subtracted after the product": Wrong(
        "whiten",
        {
            "(images - mean).flatten(1) @ matrix": "images.flatten(1) @ matrix",
            "rows.reshape(images.shape)": "rows.reshape(images.shape) - mean",
        },
        {"whiten-check": "after the product"},
    ),
    "whitened rows instead of images": Wrong(
        "whiten", {"rows.reshape(images.shape)": "rows"}, {"whiten-check": "should return shape"}
    ),
    "mean subtracted in place": Wrong(
        "whiten",
        {"rows = (images - mean).flatten(1)": "images -= mean\n    rows = images.flatten(1)"},
        {"whiten-check": "changes a tensor"},
    ),
    "mean added before the product": Wrong(
        "whiten",
        {
            "images.flatten(1) @ torch.linalg.inv": "(images + mean).flatten(1) @ torch.linalg.inv",
            "flat.reshape(images.shape) + mean": "flat.reshape(images.shape)",
        },
        {"unwhiten-check": "before the product"},
    ),
    "the transpose taken for the inverse": Wrong(
        "whiten", {"torch.linalg.inv(matrix)": "matrix.T"}, {"unwhiten-check": "needs its inverse"}
    ),
    # Task 3
    "batch normalization": Wrong(
        "convnet", {NORM: "nn.BatchNorm2d(width)"}, {"convnet-check": "batch with others"}
    ),
    "one group for all channels": Wrong(
        "convnet",
        {NORM: "nn.GroupNorm(1, width)"},
        {"convnet-check": "all channels of an image together"},
    ),
    "no learned scale and shift": Wrong(
        "convnet",
        {NORM: "nn.InstanceNorm2d(width)"},
        {"convnet-check": "no learned scale and shift"},
    ),
    "maximum pooling": Wrong(
        "convnet", {"nn.AvgPool2d": "nn.MaxPool2d"}, {"convnet-check": "maximum"}
    ),
    "no padding": Wrong(
        "convnet",
        {", padding=1": "", "(image_size // 8) ** 2": "(image_size // 8 - 2) ** 2"},
        {"convnet-check": "with padding"},
    ),
    "no ReLU": Wrong(
        "convnet", {"            nn.ReLU(),\n": ""}, {"convnet-check": "ReLU is missing"}
    ),
    "two blocks": Wrong(
        "convnet",
        {"(channels, width, width)": "(channels, width)"},
        {"convnet-check": "2 convolutions"},
    ),
    "made for 32 x 32 only": Wrong(
        "convnet", {"(image_size // 8) ** 2": "16"}, {"convnet-check": "inputs instead of"}
    ),
    "convolutions without bias": Wrong(
        "convnet",
        {"padding=1": "padding=1, bias=False"},
        {"convnet-check": "convolutions have no bias"},
    ),
    "probabilities instead of logits": Wrong(
        "convnet",
        {"nn.Linear(features, classes)": "nn.Linear(features, classes), nn.Softmax(1)"},
        {"convnet-check": "without a softmax"},
    ),
    "ddpp's own ConvNet": Wrong(
        "convnet",
        {
            "return nn.Sequential(": "return ddpp.ConvNet(channels, classes, width, 3, "
            "image_size)\n    nn.Sequential("
        },
        {"convnet-check": "write it yourself"},
    ),
    # Task 4
    "never +reach": Wrong(
        "draw-shift", {"reach + 1": "reach"}, {"draw-shift-check": "+2 never comes up"}
    ),
    "one offset for the batch": Wrong(
        "draw-shift",
        {DRAW: DRAW.replace("(n, 2)", "(1, 2)") + ".expand(n, 2)"},
        {"draw-shift-check": "one for each"},
    ),
    "down as far as to the right": Wrong(
        "draw-shift",
        {DRAW: DRAW.replace("(n, 2)", "(n, 1)") + ".expand(n, 2)"},
        {"draw-shift-check": "separately"},
    ),
    "rounded, so that the ends come up half as often": Wrong(
        "draw-shift",
        {DRAW: "((2 * torch.rand(n, 2, generator=generator) - 1) * reach).round().long()"},
        {"draw-shift-check": "equally likely"},
    ),
    "the global generator": Wrong(
        "draw-shift",
        {", generator=generator": ""},
        {"draw-shift-check": "generator that is passed in"},
    ),
    "a generator seeded anew": Wrong(
        "draw-shift",
        {"generator=generator)": "generator=generator.manual_seed(0))"},
        {"draw-shift-check": "seed it anew"},
    ),
    "what leaves comes back on the other side": Wrong(
        "shift",
        {
            "zip(padded,": "zip(images,",
            CUT: "moved.append(image.roll((down, right), (1, 2)))",
        },
        {"shift-check": "comes in on the other"},
    ),
    "the first offset for all": Wrong(
        "shift",
        {"offsets.tolist()": "offsets[:1].expand_as(offsets).tolist()"},
        {"shift-check": "offset of the first"},
    ),
    "rows and columns swapped": Wrong(
        "shift", {"(down, right) in": "(right, down) in"}, {"shift-check": "are swapped"}
    ),
    "the wrong way": Wrong(
        "shift",
        {"reach - down, reach - right": "reach + down, reach + right"},
        {"shift-check": "the wrong way"},
    ),
    "the edge repeated": Wrong(
        "shift",
        {"[reach] * 4": '[reach] * 4, mode="replicate"'},
        {"shift-check": "edge are repeated"},
    ),
    "gradient cut by detach": Wrong(
        "shift", {"F.pad(images,": "F.pad(images.detach(),"}, {"shift-check": "no gradient"}
    ),
    # Task 5
    "average over batches": Wrong(
        "accuracy",
        {
            "int((network(x).argmax(1) == y).sum())": "float((network(x).argmax(1) == "
            "y).float().mean())",
            "hits / len(labels)": "hits / len(images.split(batch))",
        },
        {"accuracy-check": "small last batch"},
    ),
    "a share instead of percent": Wrong(
        "accuracy", {"100 * hits": "hits"}, {"accuracy-check": "in percent"}
    ),
    "a graph is built": Wrong(
        "accuracy", {"torch.no_grad()": "torch.enable_grad()"}, {"accuracy-check": "a graph"}
    ),
    "all images at once": Wrong(
        "accuracy",
        {"images.split(batch), labels.split(batch)": "[images], [labels]"},
        {"accuracy-check": "images at once"},
    ),
    "the visible answers by heart": Wrong(
        "accuracy",
        {"return 100 * hits / len(labels)": "return {33: 1700 / 33, 7: 300 / 7}[len(labels)]"},
        {"accuracy-check": "images are classified as their labels"},
    ),
}
