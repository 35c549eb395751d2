"""The job of `cc export`: a model -> one ONNX file, checked against torch and measured."""
