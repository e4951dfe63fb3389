"""Registry of the sampler engines: a configuration listed here can be selected as `teacher.sampling.type`."""

from teacher.samplers.openai import OpenAISampling as OpenAISampling
from teacher.samplers.transformers import TransformersSampling as TransformersSampling
from teacher.samplers.vllm import VllmSampling as VllmSampling
