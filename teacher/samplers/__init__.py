"""The sampler engines, by their configurations; a line here adds one.

A configuration selects any of them as `teacher.sampling.type`.
"""

from teacher.samplers.openai import OpenAISampling as OpenAISampling
from teacher.samplers.transformers import TransformersSampling as TransformersSampling
from teacher.samplers.vllm import VllmSampling as VllmSampling
