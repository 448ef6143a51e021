"""The PyTorch reference: float32 arithmetic on the bundle's stored weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cxrvit_edge.errors import EngineError
from cxrvit_edge.runtime.session import Float32, Outputs


class TorchSession:
    """The network built from the config in the header of weights.safetensors. threads 0: torch's own choice."""

    backend = "torch"
    precision = "fp32"
    fingerprint = ""
    batch_sizes: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    def __init__(self, weights: Path, *, threads: int = 0, device: str = "cpu") -> None:
        try:
            import safetensors  # noqa: F401 (checkpoint imports it when it loads)
            import torch

            from cxrvit_edge.model import checkpoint
        except ImportError as error:
            raise EngineError(
                f"the torch back end needs torch and safetensors ({error.name} is not installed): "
                "pip install torch==2.13.0 'cxrvit-edge[train]'"
            ) from error
        if threads:
            torch.set_num_threads(threads)
        tensors, config, _ = checkpoint.load(weights)
        self._net = checkpoint.network(tensors, config, name=str(weights)).to(device)
        self._device = device
        self.version: str = torch.__version__

    def run(self, batch: Float32) -> Outputs:
        import torch

        try:
            with torch.inference_mode():
                values = self._net(torch.from_numpy(batch).to(self._device))
        except (RuntimeError, ValueError, TypeError) as error:
            raise EngineError(f"torch failed on a batch of shape {batch.shape} ({error})") from error
        return Outputs(*(v.float().cpu().numpy() for v in values))

    def explain(self, batch: Float32, classes: Sequence[int]) -> Float32:
        """Relevance of each patch to a class an image, by relevance propagation: see session.Explainer."""
        import torch

        from cxrvit_edge.model.relevance import relevance

        try:
            maps = relevance(self._net, torch.from_numpy(batch).to(self._device), torch.tensor(classes))
        except (RuntimeError, ValueError, TypeError) as error:
            raise EngineError(f"torch failed to explain a batch of shape {batch.shape} ({error})") from error
        values: Float32 = maps.cpu().numpy()
        return values
