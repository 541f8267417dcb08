"""Training arguments of LOCA (arXiv 2212.02400)."""

from dataclasses import dataclass, field

from hf_geossl.training.arguments import TeacherStudentTrainingArguments


@dataclass
class LOCATrainingArguments(TeacherStudentTrainingArguments):
    """Training arguments of LOCA; the defaults are the authors' ViT-B/16 configuration (arXiv 2212.02400).

    That is a peak of 1e-3 at a global batch of 1024 that ends at 1 % of itself, constant weight decay, all gradients clipped together.

    Args:
        decay_attention_biases (`bool`): Whether weight decay reaches the biases of queries, keys and values, as in the
            authors' code, where they are matrices (a row for each head).
    """

    weight_decay: float = field(default=0.1, metadata={"help": "Weight decay at the first step."})
    warmup_steps: float = field(
        default=0.15, metadata={"help": "Steps of linear warm-up; below 1 it is a share of the run."}
    )
    max_grad_norm: float = field(default=1.0, metadata={"help": "Norm that gradients are clipped to; 0 turns it off."})
    base_learning_rate: float | None = field(
        default=2.5e-4,
        metadata={"help": "Learning rate for a global batch of 256, scaled linearly; 'none' uses learning_rate."},
    )
    min_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate that the cosine ends at; 'none' is 1 %% of the peak."}
    )
    weight_decay_end: float | None = field(
        default=None, metadata={"help": "Weight decay at the end of the run; 'none' keeps it constant."}
    )
    clip_mode: str = field(
        default="global",
        metadata={"help": "'tensor' clips each parameter tensor by itself, 'global' all together."},
    )
    decay_attention_biases: bool = field(
        default=True,
        metadata={"help": "Decay the biases of queries, keys and values too, as the authors' code does."},
    )
