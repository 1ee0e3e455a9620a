"""The model: timm's Vision Transformers with token reduction and Cross-Layer Cache Aggregation.

`token_reduced_vit` has the forward pass, `factory` builds models, `saving` and `pretrained` store and load them.
"""
