"""fastrnn as a backend of the package onnx, for its own tests of operators."""

import importlib

from onnx.backend.base import Backend, BackendRep

fastrnn_onnx = importlib.import_module("fastrnn.onnx")


class Rep(BackendRep):
    def __init__(self, model):
        self.model = model

    def run(self, inputs, **kwargs):
        return self.model(*inputs)


class FastrnnBackend(Backend):
    @classmethod
    def prepare(cls, model, device="CPU", **kwargs):
        super().prepare(model, device, **kwargs)
        return Rep(fastrnn_onnx.load(model.SerializeToString()))

    @classmethod
    def supports_device(cls, device):
        return device == "CPU"
