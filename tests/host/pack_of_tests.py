"""Nodes that only these tests use, as a pack of one file in the test host.

They make latents and images, write tensors, and run other nodes while memory runs out.
"""

import importlib
import json
import os

import folder_paths
import numpy
import torch


def _noise(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class MakeLatent:
    CATEGORY, FUNCTION, RETURN_TYPES = "exact_vae_test", "make", ("LATENT",)

    @classmethod
    def INPUT_TYPES(cls):
        size = ("INT", {"default": 24, "min": 1, "max": 4096})
        return {"required": {"width": size, "height": size, "batch": size, "seed": size}}

    def make(self, width, height, batch, seed):
        z = _noise((batch, 4, height, width), seed) + torch.linspace(-1, 1, width)
        z[0, 0, height // 3, width // 3] = 9.0
        return ({"samples": z},)


class MakeImage:
    CATEGORY, FUNCTION, RETURN_TYPES = "exact_vae_test", "make", ("IMAGE", "MASK")

    @classmethod
    def INPUT_TYPES(cls):
        size = ("INT", {"default": 24, "min": 1, "max": 4096})
        return {"required": {"width": size, "height": size, "batch": size, "seed": size}}

    def make(self, width, height, batch, seed):
        small = _noise((batch, 3, height // 8 + 1, width // 8 + 1), seed)
        image = torch.nn.functional.interpolate(small, size=(height, width), mode="bilinear") * 0.25 + 0.5
        mask = torch.zeros(1, height, width)
        mask[:, height // 3 : height // 2, width // 4 : width // 2] = 1.0
        return (image.movedim(1, -1).clamp(0, 1).contiguous(), mask)


class _Dump:
    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = "exact_vae_test", "dump", (), True

    def save(self, name, tensor):
        path = os.path.join(folder_paths.get_output_directory(), name + ".npy")
        numpy.save(path, tensor.detach().cpu().numpy())
        facts = {"shape": list(tensor.shape), "dtype": str(tensor.dtype), "device": str(tensor.device)}
        return {"ui": {"text": [json.dumps(facts)]}}


class DumpImage(_Dump):
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"images": ("IMAGE",), "name": ("STRING", {"default": "image"})}}

    def dump(self, images, name):
        return self.save(name, images)


class DumpLatent(_Dump):
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"samples": ("LATENT",), "name": ("STRING", {"default": "latent"})}}

    def dump(self, samples, name):
        if "noise_mask" in samples:
            self.save(name + "_mask", samples["noise_mask"])
        return self.save(name, samples["samples"])


class _Failing:
    """Runs a node that is there under the same name, with one allocation, or all from one on, failing on the way."""

    CATEGORY, FUNCTION, DECODES = "exact_vae_test", "run", True

    @classmethod
    def INPUT_TYPES(cls):
        kind = {"samples": ("LATENT",)} if cls.DECODES else {"pixels": ("IMAGE",)}
        share = ("FLOAT", {"default": 0.5, "min": 0.0, "max": 1.0})
        more = {"vae": ("VAE",), "node": ("STRING", {"default": ""}), "share": share, "once": ("BOOLEAN", {})}
        return {"required": {**kind, **more}}

    def run(self, vae, node, share, once, **inputs):
        import nodes

        pack = nodes.NODE_CLASS_MAPPINGS["ExactVAEDecode"].__module__.rsplit(".", 2)[0]
        injector = importlib.import_module(pack + ".tests.injector")
        kind = nodes.NODE_CLASS_MAPPINGS[node]
        call = getattr(kind(), kind.FUNCTION)
        with injector.AllocationFailures() as counted:
            call(vae=vae, **inputs)
        number = 1 + int(share * (counted.count - 1))
        with injector.AllocationFailures(fail_at=number, once=once) as failures:
            result = call(vae=vae, **inputs)
        told = {"count": counted.count, "number": number, "failed": failures.failed, "retried": failures.count}
        ui = {"text": [json.dumps(told)]}
        result = result if isinstance(result, dict) else {"result": result}
        return {"ui": {**result.get("ui", {}), **ui}, "result": result["result"]}


class FailingDecode(_Failing):
    RETURN_TYPES = ("IMAGE",)


class FailingEncode(_Failing):
    RETURN_TYPES, DECODES = ("LATENT",), False


NODE_CLASS_MAPPINGS = {
    "ExactVAETestLatent": MakeLatent,
    "ExactVAETestImage": MakeImage,
    "ExactVAETestDumpImage": DumpImage,
    "ExactVAETestDumpLatent": DumpLatent,
    "ExactVAETestFailingDecode": FailingDecode,
    "ExactVAETestFailingEncode": FailingEncode,
}
