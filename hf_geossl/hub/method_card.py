"""What a card says of the method that a model was trained with."""

from dataclasses import dataclass

from transformers import PreTrainedConfig

from hf_geossl.methods import METHODS, WRAPPER


@dataclass(frozen=True)
class Paper:
    """A paper on arXiv.

    Args:
        name (`str`): What it calls its method.
        arxiv (`str`): Its number.
        title, authors (`str`): As in its BibTeX entry.
    """

    name: str
    arxiv: str
    title: str
    authors: str

    @property
    def citation(self) -> str:
        """The BibTeX entry; the year is that of the number."""
        year = f"20{self.arxiv[:2]}"
        return (
            f"@article{{{self.name.lower()}{year},\n  title={{{self.title}}},\n  author={{{self.authors}}},\n"
            f"  journal={{arXiv preprint arXiv:{self.arxiv}}},\n  year={{{year}}}\n}}"
        )


@dataclass(frozen=True)
class MethodCard:
    """What a card says of a method, as a model was trained with it.

    Args:
        paper (`Paper`, *optional*): Of the method; None of a head over a trunk of another library.
        about (`str`): What it trains features to be.
        lesson (`str`): The same for people who know no paper, as the rest of "It learned by".
        pooled (`str`): What `pooler_output` is.
        fields (`tuple[str, ...]`): Configuration fields that say what was trained.
        host (`Paper`, *optional*): Of the method whose loss it is trained beside.
        tags (`tuple[str, ...]`): More of the Hub's tags.
        teacher (`bool`): Whether there is a teacher beside the student.
    """

    paper: Paper | None
    about: str
    lesson: str
    pooled: str
    fields: tuple[str, ...]
    host: Paper | None = None
    tags: tuple[str, ...] = ()
    teacher: bool = True

    @property
    def citations(self) -> list[str]:
        """BibTeX entries of the paper and of the host's."""
        return [paper.citation for paper in (self.paper, self.host) if paper is not None]


def method_card(config: PreTrainedConfig) -> MethodCard:
    """What a card says of a model's method: the words of its row in `methods.py`, adapted to the configuration.

    Args:
        config (`PreTrainedConfig`): Of the model.

    Returns:
        `MethodCard`: The words.
    """
    if config.model_type == WRAPPER:
        described = config.trunk_config
        about = f"The trunk is timm's `{described['architecture']}`." if config.is_of_timm else ""
        return MethodCard(None, about or f"The trunk is transformers' `{described['model_type']}`.", "", "", ())
    method = METHODS[config.model_type]
    paper = Paper(method.title, method.arxiv, method.paper_title, method.paper_authors)
    card = MethodCard(paper, method.summary, method.lesson, method.pooled, method.trained_fields)
    return method.load("card")(card, config) if method.card else card
