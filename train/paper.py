"""Tables 4 to 10 of Park, Kim et al. (arXiv 2104.07235v1), as printed there. Data only.

Where its text and its tables disagree, the tables stand here: YNU's mean AUC (0.947 in section 5.1, 0.921 in Table 4),
the severity MSEs (1.657, 1.696, 1.676 in section 5.3, Table 6's below). Averages are the paper's own rounding, within
0.0015 of the mean of what they average; that of ViT in Table 9 is printed 0.875, of its hospitals it is 0.874.
"""

from __future__ import annotations

from dataclasses import dataclass

HOSPITALS = ("CNUH", "YNU", "KNUH")
CLASS_COLUMNS = ("Avg.", "Normal", "Others", "COVID")
RADIOLOGISTS_MSE = 1.683  # section 5.3: five radiologists, each against their consensus, 150 Brixia images


@dataclass(frozen=True)
class Row:
    """key: what tables.py knows the row by; values: one a column of its table."""

    key: str
    name: str
    values: tuple[float, ...]
    group: str = ""
    part: str = ""  # of a row with many lines: a class, or a metric


@dataclass(frozen=True)
class Table:
    """columns: the hospitals, or "Avg." of the three; measure: the figure, and on which views."""

    number: int
    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


def _by_class(
    key: str, name: str, group: str, cnuh: tuple[float, ...], ynu: tuple[float, ...], knuh: tuple[float, ...]
) -> tuple[Row, ...]:
    """The printed columns of each hospital (Avg., Normal, Others, COVID) as a row a class."""
    values = zip(cnuh, ynu, knuh, strict=True)
    return tuple(Row(key, name, v, group, part) for part, v in zip(CLASS_COLUMNS, values, strict=True))


TABLE_4 = Table(
    4,
    "Diagnosis, PA views: AUC; sensitivity, specificity and accuracy in per cent",
    HOSPITALS,
    (
        *_by_class(
            "auc", "AUC", "", (0.932, 0.938, 0.926, 0.931), (0.921, 0.947, 0.908, 0.907), (0.928, 0.955, 0.908, 0.921)
        ),
        *_by_class(
            "sensitivity",
            "Sensitivity",
            "",
            (83.4, 84.7, 82.1, 83.3),
            (88.4, 92.3, 85.4, 87.5),
            (85.4, 87.3, 87.7, 81.3),
        ),
        *_by_class(
            "specificity",
            "Specificity",
            "",
            (85.3, 88.9, 88.3, 78.6),
            (84.2, 90.8, 82.5, 79.3),
            (86.8, 89.4, 82.1, 88.8),
        ),
        *_by_class(
            "accuracy", "Accuracy", "", (83.8, 85.2, 87.7, 78.6), (84.9, 91.8, 83.4, 79.4), (86.9, 88.3, 84.3, 88.1)
        ),
    ),
)

TABLE_5 = Table(
    5,
    "Diagnosis, AP views: AUC",
    ("CNUH",),
    tuple(Row("auc", "AUC", (v,), part=p) for p, v in zip(CLASS_COLUMNS, (0.866, 0.890, 0.880, 0.828), strict=True)),
)

TABLE_6 = Table(
    6,
    "Severity score, 0-6",
    HOSPITALS,
    (
        Row("mse", "MSE", (1.682, 1.677, 1.607)),
        Row("mae", "MAE", (1.028, 1.102, 0.930)),
        Row("cc", "CC", (0.781, 0.777, 0.682)),
        Row("r2", "R2", (0.572, 0.572, 0.432)),
    ),
)

_CNN, _VIT = "CNN-based", "Transformer-based"
TABLE_7 = Table(
    7,
    "Diagnosis, PA views: AUC beside other networks",
    HOSPITALS,
    (
        *_by_class(
            "resnet50",
            "ResNet-50",
            _CNN,
            (0.843, 0.725, 0.883, 0.922),
            (0.816, 0.768, 0.914, 0.766),
            (0.846, 0.755, 0.874, 0.910),
        ),
        *_by_class(
            "resnet152",
            "ResNet-152",
            _CNN,
            (0.823, 0.755, 0.893, 0.821),
            (0.841, 0.811, 0.924, 0.789),
            (0.828, 0.795, 0.800, 0.890),
        ),
        *_by_class(
            "densenet121",
            "DenseNet-121",
            _CNN,
            (0.852, 0.740, 0.907, 0.908),
            (0.880, 0.820, 0.937, 0.883),
            (0.835, 0.795, 0.792, 0.920),
        ),
        *_by_class(
            "vit", "ViT", _VIT, (0.885, 0.883, 0.879, 0.894), (0.900, 0.901, 0.906, 0.895), (0.838, 0.855, 0.753, 0.906)
        ),
        *_by_class(
            "hybrid",
            "ViT (hybrid)",
            _VIT,
            (0.857, 0.865, 0.848, 0.858),
            (0.902, 0.936, 0.885, 0.883),
            (0.857, 0.889, 0.760, 0.922),
        ),
        *_by_class(
            "proposed",
            "Ours",
            _VIT,
            (0.932, 0.938, 0.926, 0.931),
            (0.921, 0.947, 0.908, 0.907),
            (0.928, 0.955, 0.908, 0.921),
        ),
    ),
)

TABLE_8 = Table(
    8,
    "Severity MSE beside other networks",
    HOSPITALS,
    (
        Row("resnet50", "ResNet-50", (1.649, 2.072, 2.024), _CNN),
        Row("resnet152", "ResNet-152", (1.718, 2.135, 2.026), _CNN),
        Row("densenet121", "DenseNet-121", (1.839, 1.963, 1.693), _CNN),
        Row("vit", "ViT", (3.416, 3.918, 3.348), _VIT),
        Row("hybrid", "ViT (hybrid)", (1.894, 2.781, 2.099), _VIT),
        Row("proposed", "Ours", (1.682, 1.677, 1.607), _VIT),
    ),
)

_SIZE, _MAP, _FREEZE = "Network size", "Intermediate feature map", "Freezing backbone weights"
_PIXELS, _SIMCLR = "Image size", "Self-supervised pre-training"
TABLE_9 = Table(
    9,
    "Ablations of the diagnosis, PA views: mean AUC of 3 classes",
    ("Avg.", *HOSPITALS),
    (
        Row("2x4", "2 layers and 4 heads", (0.921, 0.914, 0.921, 0.929), _SIZE),
        Row("4x8", "4 layers and 8 heads", (0.915, 0.914, 0.916, 0.915), _SIZE),
        Row("12x12", "12 layers and 12 heads (ours)", (0.927, 0.932, 0.921, 0.928), _SIZE),
        Row("before", "feature before PCAM (ours)", (0.927, 0.932, 0.921, 0.928), _MAP),
        Row("after-1", "1 feature after PCAM", (0.921, 0.923, 0.908, 0.933), _MAP),
        Row("after-3", "3 features after PCAM", (0.903, 0.901, 0.897, 0.910), _MAP),
        Row("after-10", "10 features after PCAM", (0.907, 0.903, 0.919, 0.900), _MAP),
        Row("trainable", "Trainable backbone weights (ours)", (0.927, 0.932, 0.921, 0.928), _FREEZE),
        Row("frozen", "Frozen backbone weights", (0.919, 0.923, 0.919, 0.915), _FREEZE),
        Row("512", "512 x 512 (ours)", (0.927, 0.932, 0.921, 0.928), _PIXELS),
        Row("1024", "1024 x 1024", (0.844, 0.887, 0.835, 0.809), _PIXELS),
        Row("vit", "ViT w/o pretrain", (0.875, 0.885, 0.900, 0.838), _SIMCLR),
        Row("vit simclr", "ViT w pretrain", (0.879, 0.872, 0.875, 0.889), _SIMCLR),
        Row("hybrid", "ViT(hybrid) w/o pretrain", (0.872, 0.857, 0.902, 0.857), _SIMCLR),
        Row("hybrid simclr", "ViT(hybrid) w pretrain", (0.866, 0.865, 0.890, 0.841), _SIMCLR),
        Row("proposed", "Proposed w/o pretrain (ours)", (0.927, 0.932, 0.921, 0.928), _SIMCLR),
        Row("proposed simclr", "Proposed w pretrain", (0.928, 0.951, 0.918, 0.915), _SIMCLR),
    ),
)

_POOLING, _DATA = "ROI pooling", "Training data"
TABLE_10 = Table(
    10,
    "Ablations of the severity: MSE",
    ("Avg.", *HOSPITALS),
    (
        Row("average", "Avg-pool", (1.846, 1.842, 1.764, 1.933), _POOLING),
        Row("max", "Max-pool (ours)", (1.655, 1.682, 1.677, 1.607), _POOLING),
        Row("brixia only", "Brixia only", (2.503, 2.392, 3.310, 1.806), _DATA),
        Row("three datasets", "Three datasets (ours)", (1.655, 1.682, 1.677, 1.607), _DATA),
    ),
)

TABLES = (TABLE_4, TABLE_5, TABLE_6, TABLE_7, TABLE_8, TABLE_9, TABLE_10)
