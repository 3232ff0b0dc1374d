"""A classifier as an ONNX file, which onnxruntime alone runs."""

import json

import numpy as np
import onnxruntime
from PIL import Image

import norton_det as nd

net, spec = nd.load("r50.safetensors")
print(nd.export_network(net, "r50.onnx", spec=spec).check.differences.figures())

session = onnxruntime.InferenceSession("r50.onnx", providers=["CPUExecutionProvider"])
about = json.loads(session.get_modelmeta().custom_metadata_map["norton-det.preprocessing"])
image = Image.open("shapes/val2017/000000000001.png").convert("RGB").resize((about["crop"], about["crop"]))
pixels = (np.asarray(image) / 255 - about["mean"]) / about["std"]
(logits,) = session.run(["logits"], {"images": pixels.transpose(2, 0, 1)[None].astype(np.float32)})
print("class", logits.argmax(), "logit", logits.max())
