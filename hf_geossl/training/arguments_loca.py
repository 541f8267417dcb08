"""Training arguments of LOCA (arXiv 2212.02400)."""

from dataclasses import dataclass

from hf_geossl.training.arguments import TeacherStudentTrainingArguments


@dataclass
class LOCATrainingArguments(TeacherStudentTrainingArguments):
    """Training arguments of LOCA; the defaults are the authors' ViT-B/16 configuration (arXiv 2212.02400).

    That is a peak of 1e-3 at a global batch of 1024 that ends at 1 % of itself, constant weight decay, all gradients clipped together.

    Args:
        decay_attention_biases (`bool`): Whether weight decay reaches the biases of queries, keys and values, as in the
            authors' code, where they are matrices (a row for each head).
    """

    weight_decay: float = 0.1
    warmup_steps: float = 0.15
    max_grad_norm: float = 1.0
    base_learning_rate: float | None = 2.5e-4
    min_learning_rate: float | None = None
    weight_decay_end: float | None = None
    clip_mode: str = "global"
    decay_attention_biases: bool = True
