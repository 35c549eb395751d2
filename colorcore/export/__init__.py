"""A trained model as one ONNX file: its graph, checked against torch; smaller by int8 or pruning.

:mod:`colorcore.colorizing.onnx_file` runs what is written here.
"""
