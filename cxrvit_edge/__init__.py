"""cxrvit-edge: chest radiograph triage with a DenseNet + Vision Transformer network on the edge. Research use only."""
