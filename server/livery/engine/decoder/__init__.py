"""A shorter way through decoders of the Llama family: the same modules' weights and adapters, less between them.

`parts.py` says whether a model is such a decoder, exactly; `fused.py` computes its layers with the kernels.
"""
