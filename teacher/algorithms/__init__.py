"""Registry of the learning algorithms: a configuration listed here can be selected as `teacher.learning.algorithm`."""

from teacher.algorithms.grpo import GroupRelativeConfig as GroupRelativeConfig
from teacher.algorithms.rest_em import RestEmConfig as RestEmConfig
