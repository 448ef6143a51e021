"""What every network of Tables 7 and 8 shares: an embedding, a feature map, and three heads over them."""

from __future__ import annotations

from torch import Tensor, nn

from cxrvit_edge.model.config import NetworkConfig
from cxrvit_edge.model.severity import MapHead


class Baseline(nn.Module):
    """image (B, 1, H, W) -> the outputs of TriageNet's methods, without lungs.

    encode gives (B, width) and a map (B, width, g, g). Findings and classes are linear in the first. The paper does
    not say how its baselines grade: here, as in ours (section 3.3), by the map head over the second.
    """

    def __init__(self, config: NetworkConfig, width: int, map_widths: tuple[int, ...]) -> None:
        super().__init__()
        self.config = config
        self.findings = nn.Linear(width, len(config.findings))
        self.diagnosis = nn.Linear(width, len(config.classes))
        self.severity = MapHead(width, map_widths)

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def find(self, image: Tensor) -> Tensor:
        """Logits of the findings (B, 10)."""
        logits: Tensor = self.findings(self.encode(image)[0])
        return logits

    def embed(self, image: Tensor) -> Tensor:
        """What the linear heads read (B, D)."""
        return self.encode(image)[0]

    def diagnose(self, image: Tensor) -> Tensor:
        """Logits of the classes (B, 3)."""
        logits: Tensor = self.diagnosis(self.encode(image)[0])
        return logits

    def grade(self, image: Tensor) -> Tensor:
        """Logits of the severity map (B, 1, H/2, W/2)."""
        logits: Tensor = self.severity(self.encode(image)[1])
        return logits
