"""The readable, exact Swin Transformer V2: the judge every other form of the model is compared with.

Read in this order: ``config``, ``windows``, ``position_bias``, ``attention``, ``decoder``, ``model``; then ``variants`` (the
published sizes), ``checkpoint`` (weights of Microsoft, SimMIM, timm, Hugging Face), ``preprocessing``, ``masking`` (which of an
image's patches are hidden) and ``memory`` (less of it for the same result). Nothing here knows ONNX, INT8 or an engine.
"""
