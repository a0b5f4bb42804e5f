"""Write the recipes: one YAML file per row of the paper's tables, and short ones for a trained start.

Budgets are the multiply-adds of the networks that the paper reports (Dong and Yang, 2019, tables 1 to 4; with "pruned"
the share it says was removed). Where it reports width or depth alone for other networks only, the budget is that of
both together. Run it from any folder: `python recipes/make.py`.
"""

from __future__ import annotations

from pathlib import Path

HOME = Path(__file__).parent
NAMES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
CHOICES = {"": "both", "-width": "width", "-depth": "depth"}
FULL = {20: 40_813_184, 32: 69_124_736, 56: 125_747_840, 110: 253_149_824, 164: 247_646_720}

# by data set, depth and what is chosen: (budget in multiply-adds, accuracy in % that the paper reports)
PAPER: dict[tuple[str, int, str], tuple[int, float | None]] = {
    ("cifar10", 20, "both"): (22_440_000, 92.88), ("cifar100", 20, "both"): (22_430_000, 68.90),
    ("cifar10", 32, "both"): (34_950_000, 93.16), ("cifar100", 32, "both"): (42_500_000, 72.41),
    ("cifar10", 56, "both"): (59_500_000, 93.69), ("cifar100", 56, "both"): (61_200_000, 72.25),
    ("cifar10", 110, "both"): (119_300_000, 94.33), ("cifar100", 110, "both"): (119_600_000, 73.16),
    ("cifar10", 164, "both"): (178_100_000, 94.00), ("cifar100", 164, "both"): (171_100_000, 77.76),
}  # fmt: skip
PRUNED = {  # share of the multiply-adds that the paper says was removed
    ("cifar10", 20, "depth"): (0.462, 90.97), ("cifar100", 20, "depth"): (0.462, 64.81),
    ("cifar10", 32, "depth"): (0.410, 91.48), ("cifar100", 32, "depth"): (0.410, 66.94),
    ("cifar10", 20, "width"): (0.513, 92.31), ("cifar100", 20, "width"): (0.529, 68.08),
    ("cifar10", 32, "width"): (0.454, 92.92), ("cifar100", 32, "width"): (0.450, 71.74),
}  # fmt: skip

HEAD = "{data}, ResNet-{depth}: {what}. The paper's exact form, from scratch to the end."
WHAT = {"both": "widths and depths", "width": "widths alone, TAS (W)", "depth": "depths alone, TAS (D)"}


def budget_of(data: str, depth: int, choose: str) -> int:
    """Multiply-adds of the network that the paper reports for this row, or of its closest."""
    if (data, depth, choose) in PRUNED:
        return int((1 - PRUNED[data, depth, choose][0]) * FULL[depth])
    return PAPER[data, depth, "both"][0]


def expected(data: str, depth: int, choose: str) -> str:
    """What the paper reports."""
    found = PAPER.get((data, depth, choose), PRUNED.get((data, depth, choose)))
    return f"The paper: {found[1]} %." if found else "The paper reports no number; the budget is that of both together."


def search_of(epochs: int, weight_decay: float, batch_size: int) -> str:
    """The paper's search."""
    return f"""search:
  epochs: {epochs}
  batch_size: {batch_size}
  start: scratch
  logits_start: random
  architectures: 0
  fragments: 2
  depth_samples: all
  interpolation: average
  learning_rate: 0.1
  weight_decay: {weight_decay}
  logits_learning_rate: 0.001
  logits_weight_decay: 0.001
  logits_betas: [0.5, 0.999]
  cost_weight: 2.0
  tolerance: 0.05
  band: paper
  temperature_start: 10.0
  temperature_end: 0.1
  temperature_schedule: linear
  teacher_weight: 0.0
"""


def train_of(name: str, epochs: int, weight_decay: float, batch_size: int, teacher_weight: float) -> str:
    """The paper's training, of a small network or of its teacher."""
    return f"""{name}:
  epochs: {epochs}
  warmup_epochs: 5
  batch_size: {batch_size}
  learning_rate: 0.1
  weight_decay: {weight_decay}
  transfer: kd
  teacher_weight: {teacher_weight}
  temperature: 4.0
"""


def cifar(data: str, depth: int, choose: str) -> str:
    """One row of the CIFAR tables."""
    head = HEAD.format(data=NAMES[data], depth=depth, what=WHAT[choose])
    return f"""# {head}
# {expected(data, depth, choose)} Ours: not measured yet.
# Duration: not measured yet; 600 epochs of search, 300 of the teacher, 300 of the small network.
model: cifar_resnet:{depth}
data: {data}
residuals: free
init: fresh
budget: {{macs: {budget_of(data, depth, choose)}}}
space: {{choose: {choose}}}
{search_of(600, 5e-4, 256)}{train_of("train", 300, 5e-4, 256, 0.9)}{train_of("teacher", 300, 5e-4, 256, 0.9)}"""


def imagenet(depth: int, macs: int, accuracy: float, candidates: str = "") -> str:
    """One row of the ImageNet table; candidates are those of the depths, where the paper leaves some out."""
    return f"""# ImageNet, ResNet-{depth}: widths and depths. The paper's exact form; the teacher is torchvision's.
# The paper: {accuracy} % (top 1). Ours: not measured yet.
# Duration: not measured yet; 120 epochs of search, 120 of the small network.
model: torchvision:resnet{depth}
pretrained: true
data: folder:imagenet
image_size: 224
residuals: free
init: fresh
budget: {{macs: {macs}}}
space: {{choose: both{candidates}}}
{search_of(120, 1e-4, 256)}{train_of("train", 120, 1e-4, 256, 0.5)}"""


def short(model: str, data: str, more: str = "") -> str:
    """A trained start: minutes instead of days; gently, or what is inherited is lost."""
    return f"""# {model} on {data} from trained weights (--weights FILE), half of the multiply-adds kept.
# Ours: not measured at this length yet. Duration: not measured yet; 60 epochs of the small network.
model: {model}
data: {data}
{more}budget: {{macs: 50%}}
{train_of("train", 60, 5e-4, 128, 0.9).replace("learning_rate: 0.1", "learning_rate: 0.02")}"""


def recipes() -> dict[str, str]:
    """Every file by name."""
    files = {
        f"c{data.removeprefix('cifar')}-r{depth}{suffix}.yaml": cifar(data, depth, choose)
        for data in ("cifar10", "cifar100")
        for depth in FULL
        for suffix, choose in CHOICES.items()
    }
    files |= {f"short-c10-r{depth}.yaml": short(f"cifar_resnet:{depth}", "cifar10") for depth in FULL}
    files["short-imagenet-r18.yaml"] = short(
        "torchvision:resnet18", "folder:imagenet", "pretrained: true\nimage_size: 224\n"
    ).replace(" (--weights FILE)", "")
    files["imagenet-r18.yaml"] = imagenet(18, 1_211_000_000, 69.15)
    files["imagenet-r50.yaml"] = imagenet(
        50, 2_309_000_000, 76.20, ", candidates: {layer2: [1, 2, 4], layer3: [2, 4, 6]}"
    )
    return files


if __name__ == "__main__":
    for name, text in recipes().items():
        (HOME / name).write_text(text, encoding="utf-8")
