"""The methods, one row each: where their classes are, and what is said of them.

A row holds names, and imports nothing: every room can read it, and what a name stands for is imported when it is asked for. A
method is its own files and its row here; every list of methods in the library is read from this table.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Picture:
    """A picture that a run ends with.

    Args:
        file (`str`): Its name in the folder of the run.
        caption (`str`): What it shows.
        maker (`str`): `"module:Class"` of the `RunPicture`.
        explanation (`str`): How to read it, for a card.
        is_curve (`bool`): Whether it shows numbers over steps, and belongs below what the model does.
    """

    file: str
    caption: str
    maker: str
    explanation: str = ""
    is_curve: bool = False

    def load(self) -> Any:
        """The class that makes it; its module is imported."""
        module, _, name = self.maker.partition(":")
        return getattr(import_module(module), name)


FEATURES = Picture(
    "features.png",
    "Features before and after",
    "hf_geossl.training.pictures.base:FeaturePicture",
    "Top: crops of images. Below: what the model makes of each square of them, before and after training; squares of like colour "
    "are alike to it (the first three principal components after training, as red, green and blue).",
)

LEARNING_CURVE = Picture(
    "learning_curve.png",
    "Learning curve",
    "hf_geossl.training.pictures.learning_curve:LearningCurve",
    "What the features were good for while training, measured on the same images each time. Dashed: the same model with random "
    "weights, an image shrunk to 12 x 12 pixels, and guessing. A line that stays below its dashed ones has not been learned. RankMe, LiDAR and "
    "alpha-ReQ say how many different directions the features use; feature spread, how different images are to the model.",
    is_curve=True,
)


# what a fine-tuning ends with
FINE_TUNING_CURVE = Picture(
    "fine_tuning_curve.png",
    "Fine-tuning",
    "hf_geossl.tasks.finetuning.curve:draw_curve",
    "Loss and metric over the steps of the fine-tuning. A dashed line is what guessing reaches.",
    is_curve=True,
)
FINE_TUNING_SAMPLES = Picture(
    "fine_tuning_samples.png",
    "Predictions",
    "hf_geossl.tasks.finetuning.measuring:picture_of",
    "Some of the images that were measured, with the truth and what the model says.",
)


@dataclass(frozen=True)
class OwnTask:
    """A task of evaluation that only one method's models can do.

    Args:
        name (`str`): Its name.
        file (`str`): Its module in `hf_geossl.evaluation.protocols`.
        summary (`str`): The protocol in a line, for `--help` and reports.
        packages (`tuple[str, ...]`): Packages that it needs beyond the library's own.
    """

    name: str
    file: str
    summary: str
    packages: tuple[str, ...] = ()


@dataclass(frozen=True)
class Converter:
    """A kind of foreign checkpoint that becomes a model of a method.

    Args:
        source (`str`): What the command line calls it.
        function (`str`): `"module:function"` that reads a file.
        weights (`tuple[str, ...]`): Which weights of the file can be chosen, the default first; none where there is no choice.
        chooses (`bool`): Whether the function takes that choice; otherwise one trunk of what it returns is exported, or
            with "full" all of it.
        asks_for_heads (`bool`): Whether the number of attention heads cannot be read from a file.
    """

    source: str
    function: str
    weights: tuple[str, ...] = ()
    chooses: bool = False
    asks_for_heads: bool = True

    def load(self) -> Any:
        """The function; its module is imported."""
        module, _, name = self.function.partition(":")
        return getattr(import_module(module), name)


@dataclass(frozen=True)
class Method:
    """A method. Classes are given as `"module:Class"`.

    Args:
        name (`str`): Its `model_type`; recipes name it so.
        title (`str`): What its paper calls it; names of its classes begin so.
        arxiv (`str`): Number of the paper.
        config, model, pretraining (`str`): Configuration, trunk and `...ForPreTraining`. The model's file has the other
            classes of the trunk too.
        views, arguments, trainer (`str`): What pretraining takes.
        pictures (`tuple[Picture, ...]`): What a run ends with.
        paper_title, paper_authors (`str`): Of the paper, for the citation on a card.
        summary (`str`): What the method trains features to be, in a sentence or two, for a card.
        lesson (`str`): The same for people who know no paper: what a model practised, and what it therefore notices, as the rest
            of a sentence that begins "It learned by".
        pooled (`str`): What `pooler_output` is.
        trained_fields (`tuple[str, ...]`): Configuration fields that say what was trained, for a card.
        card (`str`): `"module:function"` that adapts the `hub.method_card.MethodCard` to a configuration.
        head_shows (`str`): What the demo shows of the method's heads, as part of a sentence.
        head_needs (`str`): Which head that takes, as a sentence.
        demo_limits (`str`): `"module:function"`, of a `demo.loading.DemoModel` with heads: the sentence that says why they
            cannot be shown, or None.
        demo_tabs (`str`): `"module:function"`, of a `DemoModel` with heads and the sample pictures: the tabs of the heads.
        tasks (`tuple[OwnTask, ...]`): Tasks of evaluation that only its models can do.
        fixed (`tuple[str, ...]`): Fields of the configuration that pretraining does not read, or that a training argument
            sets.
        converters (`tuple[Converter, ...]`): Foreign checkpoints that become its models.
    """

    name: str
    title: str
    arxiv: str
    config: str
    model: str
    pretraining: str
    views: str
    arguments: str
    trainer: str
    pictures: tuple[Picture, ...] = (FEATURES,)
    paper_title: str = ""
    paper_authors: str = ""
    summary: str = ""
    lesson: str = ""
    pooled: str = "the mean of the patch tokens"
    trained_fields: tuple[str, ...] = ()
    card: str = ""
    head_shows: str = ""
    head_needs: str = ""
    demo_limits: str = ""
    demo_tabs: str = ""
    tasks: tuple[OwnTask, ...] = ()
    fixed: tuple[str, ...] = ()
    converters: tuple[Converter, ...] = ()

    def load(self, field: str) -> Any:
        """The class that a field names, such as `load("config")`; its module is imported."""
        module, _, name = getattr(self, field).partition(":")
        return getattr(import_module(module), name)

    def public_names(self) -> dict[str, str]:
        """Names of the method's public classes -> the modules that hold them."""
        model, pretraining = (reference.partition(":")[0] for reference in (self.model, self.pretraining))
        suffixes = {
            "Model": model,
            "Backbone": model,
            "ForImageClassification": model,
            "ForSemanticSegmentation": model,
            "ForDepthEstimation": model,
            "ForObjectDetection": model,
            "ForPreTraining": pretraining,
            "ForPreTrainingOutput": pretraining,
        }
        named = {f"{self.title}{suffix}": module for suffix, module in suffixes.items()}
        for reference in (self.config, self.views, self.arguments, self.trainer):
            module, _, name = reference.partition(":")
            named[name] = module
        return named


METHODS: dict[str, Method] = {
    "gtsa": Method(
        name="gtsa",
        title="GTSA",
        arxiv="2304.08014",
        config="hf_geossl.modeling.configuration_gtsa:GTSAConfig",
        model="hf_geossl.modeling.modeling_gtsa:GTSAModel",
        pretraining="hf_geossl.modeling.pretraining_gtsa:GTSAForPreTraining",
        views="hf_geossl.views.gtsa:GTSAViews",
        arguments="hf_geossl.training.arguments_gtsa:GTSATrainingArguments",
        trainer="hf_geossl.training.trainer_gtsa:GTSATrainer",
        pictures=(
            FEATURES,
            Picture(
                "turns.png",
                "Set upright",
                "hf_geossl.training.pictures.gtsa:TurnPicture",
                "Crops, turned by no quarter, one, two or three, as the model sees them; under each the same, turned back by as "
                "much as the model says that it is turned.",
            ),
        ),
        paper_title=(
            "Self-Supervised Learning from Non-Object Centric Images with a Geometric Transformation Sensitive Architecture"
        ),
        paper_authors="Kim, Taeho and Lee, Jong-Min",
        summary=(
            "The teacher's targets are pooled where two crops overlap and turned with them, so features keep the geometry "
            "of images that are not centred on an object. The class token is not trained directly."
        ),
        lesson=(
            "finding the same spots in two crops of an image, of which each is turned, and telling how far: it keeps where in an "
            "image something is and which way it points."
        ),
        trained_fields=("correspondence_weight", "rotation_weight"),
        card="hf_geossl.hub.card_equicoherent:add_reconstruction",
        head_shows="the quarter turn that it predicts",
        head_needs="predicting quarter turns takes the rotation head",
        demo_limits="hf_geossl.demo.heads_gtsa:why_not_shown",
        demo_tabs="hf_geossl.demo.tabs_gtsa:head_tabs",
        fixed=("correspondence_weight", "rotation_weight"),
        converters=(
            Converter(
                "gtsa", "hf_geossl.conversion.gtsa:convert_gtsa_checkpoint", weights=("full", "student", "teacher")
            ),
            Converter(
                "dino",
                "hf_geossl.conversion.dino:convert_dino_checkpoint",
                weights=("teacher", "student"),
                chooses=True,
            ),
            Converter("timm", "hf_geossl.conversion.timm:convert_timm_checkpoint"),
        ),
    ),
    "loca": Method(
        name="loca",
        title="LOCA",
        arxiv="2212.02400",
        config="hf_geossl.modeling.configuration_loca:LOCAConfig",
        model="hf_geossl.modeling.modeling_loca:LOCAModel",
        pretraining="hf_geossl.modeling.pretraining_loca:LOCAForPreTraining",
        views="hf_geossl.views.loca:LOCAViews",
        arguments="hf_geossl.training.arguments_loca:LOCATrainingArguments",
        trainer="hf_geossl.training.trainer_loca:LOCATrainer",
        pictures=(
            FEATURES,
            Picture(
                "positions.png",
                "Where queries are found",
                "hf_geossl.training.pictures.loca:PositionPicture",
                "From left to right: an image with a piece outlined, the piece, where its squares lie in the image, and where "
                "the model puts them. A square keeps its colour.",
            ),
        ),
        paper_title="Location-Aware Self-Supervised Transformers for Semantic Segmentation",
        paper_authors="Caron, Mathilde and Houlsby, Neil and Schmid, Cordelia",
        summary=(
            "Patches of a query crop look at visible patches of a reference crop of the same image and learn where they lie "
            "in it, and which cluster the teacher puts that place in: features of places and of what is there."
        ),
        lesson="finding where a small piece of an image belongs: it keeps where in an image something is.",
        trained_fields=(
            "location_target",
            "location_weight",
            "num_kept_query_tokens",
            "visible_reference_ratio",
            "reference_selection",
            "use_cluster_loss",
            "num_prototypes",
        ),
        card="hf_geossl.hub.card_equicoherent:add_reconstruction",
        head_shows="where it puts the patches of a box that you drag",
        head_needs="placing a box takes the position head",
        demo_limits="hf_geossl.demo.heads_loca:why_not_shown",
        demo_tabs="hf_geossl.demo.tabs_loca:head_tabs",
        tasks=(
            OwnTask("position", "position_loca", "where a query's patches lie in the reference (LOCA's training head)"),
        ),
        fixed=("initializer_range",),  # it has its own initialisation
        converters=(
            Converter(
                "loca",
                "hf_geossl.conversion.loca:convert_loca_checkpoint",
                weights=("params", "ema_params"),
                chooses=True,
                asks_for_heads=False,
            ),
        ),
    ),
    "equicoherent": Method(
        name="equicoherent",
        title="EquiCoherent",
        arxiv="2503.18753",
        config="hf_geossl.modeling.configuration_equicoherent:EquiCoherentConfig",
        model="hf_geossl.modeling.modeling_equicoherent:EquiCoherentModel",
        pretraining="hf_geossl.modeling.pretraining_equicoherent:EquiCoherentForPreTraining",
        views="hf_geossl.views.equicoherent:EquiCoherentViews",
        arguments="hf_geossl.training.arguments_equicoherent:EquiCoherentTrainingArguments",
        trainer="hf_geossl.training.trainer_equicoherent:EquiCoherentTrainer",
        pictures=(
            FEATURES,
            Picture(
                "reconstructions.png",
                "Intermediate images, reconstructed",
                "hf_geossl.training.pictures.equicoherent:ReconstructionPicture",
                "For each image: another crop (v1), the image where a transformation begins (u), points along it and its end "
                "(v2), and under them what the model redraws from v1 and v2 alone, with its error beside that of the mean "
                "image.",
            ),
        ),
        paper_title=(
            "Self-Supervised Learning Based on Transformed Image Reconstruction for Equivariance-Coherent Feature "
            "Representation"
        ),
        paper_authors=(
            "Wang, Qin and Quercia, Alessio and Bruns, Benjamin and Morrison, Abigail and Scharr, Hanno and Krajsek, Kai"
        ),
        summary=(
            "Beside the loss of its host method it reconstructs the images between an image and its transformed state from "
            "a part of the patch features, which therefore keep what the transformation did."
        ),
        lesson=(
            "redrawing the images between one view of an image and another: it keeps how an image was moved, turned or "
            "recoloured."
        ),
        pooled="the class token",
        trained_fields=("host", "split", "patch_features", "num_prototypes"),
        card="hf_geossl.hub.card_equicoherent:describe_host",
        head_shows="the images along a transformation as its decoders reconstruct them",
        head_needs="reconstructing the images along a transformation takes the decoders",
        demo_limits="hf_geossl.demo.heads_reconstruction:why_not_shown",
        demo_tabs="hf_geossl.demo.tabs_reconstruction:head_tabs",
    ),
}

# whose trunk plain ViTs from elsewhere become, such as DINO's and timm's: it has a class token and resamples positions as DINO does
PLAIN_VIT = "gtsa"

# the `model_type` of heads over trunks of other libraries that no method's trunk stands for
WRAPPER = "vit_wrapper"

# families of other libraries that a trunk can be written as
TARGET_FAMILIES = ("dinov2", "dinov3", "vit", "deit", "ijepa", "clip", "siglip", "timm")


def run_pictures() -> dict[str, Picture]:
    """The pictures that runs end with, of all methods, by file; what is to be looked at first comes first."""
    own = [picture for method in METHODS.values() for picture in method.pictures]
    return {picture.file: picture for picture in (FINE_TUNING_SAMPLES, *own, LEARNING_CURVE, FINE_TUNING_CURVE)}
