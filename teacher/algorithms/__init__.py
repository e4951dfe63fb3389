"""The learning algorithms, by their configurations; a line here adds one.

A configuration selects any of them as `teacher.learning.algorithm`.
"""

from teacher.algorithms.grpo import GroupRelativeConfig as GroupRelativeConfig
from teacher.algorithms.rest_em import RestEmConfig as RestEmConfig
