"""Many tasks from one forward pass: each has its own gains and its own classes.

y' = base + (c ⊙ (λ − neutral)) Φ, where c, Φ and base are the same for every adapter over one basis
(`method.md`, section 3). So the backbone runs once, and a task costs a (B, K)·(K, d) product.
"""

from .answering import BLOCK
from .task_set import TaskSet

__all__ = ["BLOCK", "TaskSet"]
