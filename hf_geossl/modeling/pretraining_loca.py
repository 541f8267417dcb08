"""LOCA pretraining: student, teacher, cross-attention, heads and loss (arXiv 2212.02400)."""

from dataclasses import dataclass
from typing import Any, ClassVar, Unpack

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_outputs import ModelOutput
from transformers.utils.generic import TransformersKwargs, can_return_tuple

from .configuration_loca import LOCAConfig
from .modeling_loca import (
    LOCAClusterHead,
    LOCACrossLayer,
    LOCAModel,
    LOCAPreTrainedModel,
    LOCAPrototypes,
    check_token_indices,
    check_views,
    init_lecun_normal,
    make_heads,
)
from .objectives import location_loss, patch_cluster_losses, sinkhorn
from .teacher_student import Teacher, TeacherStudentModel, attached_reconstruction, attached_task


@dataclass
class LOCAForPreTrainingOutput(ModelOutput):
    """The losses, in all and one by one, and the scores that they are of.

    `K` tokens of the random query enter the encoder, the reference has `N` positions, there are `P` prototypes. The cluster
    fields are None without the cluster loss, the query fields with `location_target="self"`.

    Args:
        loss (`torch.Tensor` of shape `()`): location_weight * location_loss + feature_loss
            [+ reconstruction_weight * reconstruction_loss].
        location_loss (`torch.Tensor` of shape `()`): Cross-entropy of the predicted position, over tokens inside.
        feature_loss (`torch.Tensor` of shape `()`): cluster_loss + mean_entropy_loss.
        cluster_loss (`torch.Tensor` of shape `()`): Cross-entropy with the teacher's clusters, over tokens inside.
        mean_entropy_loss (`torch.Tensor` of shape `()`): Negative entropy of the mean prediction, in [-ln P, 0].
        location_accuracy (`torch.Tensor` of shape `()`): Share of right positions among tokens inside, in [0, 1].
        random_query_logits (`torch.Tensor` of shape `(batch, K, N)`): Scores of positions, in the order of the kept
            tokens.
        focal_query_logits (`torch.Tensor` of shape `(batch, focal_queries, tokens, N)`): The same of focal queries.
        random_query_cluster_logits (`torch.Tensor` of shape `(batch, K, P)`): Cosines with the prototypes.
        focal_query_cluster_logits (`torch.Tensor` of shape `(batch, focal_queries, tokens, P)`): The same.
        reference_cluster_logits (`torch.Tensor` of shape `(batch, N, P)`): The teacher's cosines, of all tokens.
        reference_logits (`torch.Tensor` of shape `(batch, N, N)`): With `location_target="self"`: scores of positions.
        reconstruction_loss (`torch.Tensor` of shape `()`, *optional*): Mean squared error of normalised pixels; None
            where nothing is reconstructed.
        mean_image_loss (`torch.Tensor` of shape `()`, *optional*): What the batch's mean images would reach.
        reconstructions (`torch.Tensor` of shape `(batch, K, channels, S, S)`, *optional*): Normalised images, one more
            with `reconstruct_final`.
        hidden_states, attentions (`tuple[torch.Tensor, ...]`, *optional*): Of the student on the random query (with
            `location_target="self"` on the reference).
    """

    loss: torch.Tensor | None = None
    location_loss: torch.Tensor | None = None
    feature_loss: torch.Tensor | None = None
    cluster_loss: torch.Tensor | None = None
    mean_entropy_loss: torch.Tensor | None = None
    location_accuracy: torch.Tensor | None = None
    random_query_logits: torch.Tensor | None = None
    focal_query_logits: torch.Tensor | None = None
    random_query_cluster_logits: torch.Tensor | None = None
    focal_query_cluster_logits: torch.Tensor | None = None
    reference_cluster_logits: torch.Tensor | None = None
    reference_logits: torch.Tensor | None = None
    reconstruction_loss: torch.Tensor | None = None
    mean_image_loss: torch.Tensor | None = None
    reconstructions: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class LOCAForPreTraining(LOCAPreTrainedModel, TeacherStudentModel):
    """Student, teacher and the losses of LOCA; the student trunk is `loca`, the teacher's `teacher.loca`.

    The teacher has the student's stochastic depth in training. A class token and registers, which trunks from elsewhere have,
    take part in attention alone: positions and clusters are those of patches.

    With `config.location_target="self"` it is single-image position prediction (Zhai et al., arXiv 2207.07611), read as
    the LOCA paper compares with it: the reference crop alone, no position embeddings (they stay 0), every token predicts
    its own raster position through the same cross-attention block, whose keys are the visible subset of its own view's
    tokens; location loss only. No numbers of the authors' exist for it.
    """

    auto_map: ClassVar[dict[str, str]] = {
        **LOCAPreTrainedModel.auto_map,
        "AutoModelForPreTraining": "pretraining_loca.LOCAForPreTraining",
    }
    main_input_name = "reference_pixel_values"
    cluster_head: LOCAClusterHead  # this and the following from `make_heads`
    cross_attention: LOCACrossLayer
    final_norm: nn.LayerNorm
    position_predictor: nn.Linear

    def __init__(self, config: LOCAConfig) -> None:
        super().__init__(config)
        self.loca = LOCAModel(config)
        for name, head in make_heads(config).items():
            self.add_module(name, head)
        self.teacher = Teacher(loca=LOCAModel(config), **make_heads(config))
        self.reconstruction = attached_task(config)  # last, so that all else initialises as without it
        self.post_init()
        self.freeze_untrained()
        self.copy_student_to_teacher()

    def freeze_untrained(self) -> None:
        """Keeps gradients from the teacher, and from the positions (they stay 0) with `location_target="self"`."""
        super().freeze_untrained()
        positions = self.loca.embeddings.position_embeddings
        if self.config.location_target == "self" and positions is not None:
            positions.requires_grad_(False)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, LOCAPrototypes):
            init_lecun_normal(module.weight)
            init.copy_(module.weight, F.normalize(module.weight, dim=1))
        else:
            super()._init_weights(module)

    def draw_kept_query_tokens(self, num_tokens: int) -> torch.Tensor:
        """Draws the random query's tokens that enter the encoder: raster indices, by torch's global CPU generator."""
        kept = self.config.num_kept_query_tokens
        return torch.randperm(num_tokens)[:kept]

    def draw_visible_reference_tokens(self) -> torch.Tensor:
        """Draws the reference's tokens that queries attend to, as `config.reference_selection` says, likewise."""
        num_tokens = self.position_predictor.out_features
        visible = int(self.config.visible_reference_ratio * num_tokens)
        if not 0 < visible <= num_tokens:
            visible = num_tokens
        if self.config.reference_selection == "unstructured":
            return torch.randperm(num_tokens)[:visible]
        tokens = torch.arange(visible)
        if self.config.reference_selection == "consecutive":
            tokens = tokens + torch.randint(num_tokens - visible + 1, ())
        return tokens

    def _predict(self, queries: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        """Scores positions `(batch, tokens, N)` for query tokens that attend to reference tokens."""
        references = references.to(queries.dtype)  # the teacher is in float32, whatever the student's dtype
        return self.position_predictor(self.final_norm(self.cross_attention(queries, references)))

    @torch.no_grad()
    def predict_positions(
        self,
        reference_pixel_values: torch.Tensor | None,
        query_pixel_values: torch.Tensor,
        visible_reference_tokens: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Predicts where each patch of a query lies in the reference; nothing is random.

        Args:
            reference_pixel_values (`torch.Tensor` of shape `(batch, channels, S, S)`): References of `image_size`; not
                read with `location_target="self"`, where a query attends to itself.
            query_pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): Queries.
            visible_reference_tokens (`torch.Tensor` of shape `(M,)`, *optional*): Tokens of the reference that queries
                attend to; all by default.

        Returns:
            `torch.Tensor` of shape `(batch, tokens, N)`: scores of the reference's positions in raster order, for the
            query's tokens in raster order. Call it in eval mode: stochastic depth would be random otherwise.
        """
        queries = self._patches(self.loca, query_pixel_values, use_positions=self.config.has_cluster_head)
        of_itself = self.config.location_target == "self"
        tokens = queries.shape[1] if of_itself else self.position_predictor.out_features
        if visible_reference_tokens is None:
            visible_reference_tokens = torch.arange(tokens)
        visible_reference_tokens = check_token_indices(
            "visible_reference_tokens", visible_reference_tokens, tokens, queries.device
        )
        if of_itself:
            return self._predict(queries, queries[:, visible_reference_tokens])
        if reference_pixel_values is None:
            raise ValueError(
                "reference_pixel_values must be images, got None, which location_target='self' alone takes"
            )
        if self.config.has_cluster_head:
            references = self._patches(self.teacher.loca, reference_pixel_values)[:, visible_reference_tokens]
        else:
            references = self._patches(self.loca, reference_pixel_values, kept_tokens=visible_reference_tokens)
        return self._predict(queries, references)

    @can_return_tuple
    def forward(
        self,
        reference_pixel_values: torch.Tensor,
        random_query_pixel_values: torch.Tensor | None = None,
        focal_query_pixel_values: torch.Tensor | None = None,
        random_query_positions: torch.Tensor | None = None,
        focal_query_positions: torch.Tensor | None = None,
        kept_query_tokens: torch.Tensor | None = None,
        visible_reference_tokens: torch.Tensor | None = None,
        transformed_pixel_values: torch.Tensor | None = None,
        intermediate_pixel_values: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> LOCAForPreTrainingOutput:
        """Computes the losses of a batch of views.

        Args:
            reference_pixel_values (`torch.Tensor` of shape `(batch, channels, S, S)`): References, of `image_size`.
            random_query_pixel_values (`torch.Tensor` of shape `(batch, channels, S, S)`): Random queries, of any size
                divisible by the patch. Needed unless `location_target="self"`.
            focal_query_pixel_values (`torch.Tensor` of shape `(batch, queries, channels, s, s)`, *optional*): Focal
                queries, of any size divisible by the patch.
            random_query_positions (`torch.Tensor` of shape `(batch, tokens)`): Raster index of each token's place in
                the reference, -1 outside; for all tokens of the query.
            focal_query_positions (`torch.Tensor` of shape `(batch, queries, tokens)`): The same of the focal queries.
            kept_query_tokens (`torch.Tensor` of shape `(K,)`, *optional*): Tokens of the random query that enter the
                encoder, the same for the whole batch; drawn where absent.
            visible_reference_tokens (`torch.Tensor` of shape `(M,)`, *optional*): Tokens of the reference that queries
                attend to; drawn where absent.
            transformed_pixel_values (`torch.Tensor` of shape `(batch, channels, S, S)`, *optional*): The reference
                transformed; needed where something is reconstructed, and not read elsewhere.
            intermediate_pixel_values (`torch.Tensor` of shape `(batch, K, channels, S, S)`, *optional*): The intermediate
                images of the transformation, the same.

        Returns:
            `LOCAForPreTrainingOutput`.

        Raises:
            ValueError: If shapes do not fit together, a position or token does not exist, the reference has not the
                configuration's `image_size`, or the images of the reconstruction are missing.

        Source: arXiv 2212.02400; the reconstruction arXiv 2503.18753.
        """
        if focal_query_pixel_values is not None and focal_query_pixel_values.shape[1:2] == (0,):
            focal_query_pixel_values = focal_query_positions = None
        queries = (random_query_pixel_values, random_query_positions, focal_query_pixel_values, focal_query_positions)
        check_views(self.config, reference_pixel_values, *queries)
        device = reference_pixel_values.device
        if visible_reference_tokens is None:
            visible_reference_tokens = self.draw_visible_reference_tokens()
        visible_reference_tokens = check_token_indices(
            "visible_reference_tokens", visible_reference_tokens, self.position_predictor.out_features, device
        )
        if self.config.location_target == "self":
            return self._predict_own_positions(reference_pixel_values, visible_reference_tokens, **kwargs)
        if random_query_pixel_values is None or random_query_positions is None:
            raise ValueError(
                "random_query_pixel_values and random_query_positions are needed: take them from LOCAViews with the views"
            )
        num_tokens = random_query_positions.shape[1]
        if kept_query_tokens is None:
            kept_query_tokens = self.draw_kept_query_tokens(num_tokens)
        kept_query_tokens = check_token_indices("kept_query_tokens", kept_query_tokens, num_tokens, device)

        references, reference_clusters = self._encode_reference(reference_pixel_values, visible_reference_tokens)
        use_positions = self.config.has_cluster_head
        outputs = self.loca(random_query_pixel_values, kept_query_tokens, use_positions, **kwargs)
        kept = tokens = self.loca.patch_tokens(outputs)  # (B, K, D)
        positions = random_query_positions[:, kept_query_tokens]  # (B, K)
        if focal_query_pixel_values is not None and focal_query_positions is not None:
            focal = self._patches(self.loca, focal_query_pixel_values.flatten(0, 1), use_positions=use_positions)
            # tokens of all queries of an image attend to the same reference, independently of each other
            tokens = torch.cat([tokens, focal.unflatten(0, focal_query_positions.shape[:2]).flatten(1, 2)], dim=1)
            positions = torch.cat([positions, focal_query_positions.flatten(1)], dim=1)  # (B, K + Q * n)
        logits = self._predict(tokens, references)
        clusters = self.cluster_head(tokens) if self.config.has_cluster_head else None
        losses = self._losses(logits, clusters, reference_clusters, positions)

        if self.reconstruction is not None:
            # the student encodes the kept tokens of the random query, and nothing of the others
            everything = kept.new_zeros(len(kept), num_tokens, kept.shape[2]).index_copy(1, kept_query_tokens, kept)
            size = random_query_pixel_values.shape
            losses |= attached_reconstruction(
                self, everything, size, transformed_pixel_values, intermediate_pixel_values
            )
            losses["loss"] = losses["loss"] + self.config.reconstruction_weight * losses["reconstruction_loss"]
        focal_shape = None if focal_query_positions is None else focal_query_positions.shape[1:]
        random_query_logits, focal_query_logits = _split(logits, len(kept_query_tokens), focal_shape)
        random_query_clusters, focal_query_clusters = _split(clusters, len(kept_query_tokens), focal_shape)
        return LOCAForPreTrainingOutput(
            **losses,
            random_query_logits=random_query_logits,
            focal_query_logits=focal_query_logits,
            random_query_cluster_logits=random_query_clusters,
            focal_query_cluster_logits=focal_query_clusters,
            reference_cluster_logits=reference_clusters,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    @staticmethod
    def _patches(trunk: LOCAModel, pixel_values: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Encodes images to their patch tokens `(batch, tokens, hidden_size)`."""
        return trunk.patch_tokens(trunk(pixel_values, **kwargs))

    def _encode_reference(
        self, pixel_values: torch.Tensor, visible_tokens: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Encodes the visible tokens `(B, M, D)` of references, and with clustering all tokens' cosines `(B, N, P)`."""
        if not self.config.has_cluster_head:
            return self._patches(self.loca, pixel_values, kept_tokens=visible_tokens), None
        with torch.no_grad():
            references = self._patches(self.teacher.loca, pixel_values)
            return references[:, visible_tokens], self.teacher.cluster_head(references)

    def _losses(
        self,
        logits: torch.Tensor,
        clusters: torch.Tensor | None,
        reference_clusters: torch.Tensor | None,
        positions: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """Computes the losses of query tokens at `positions (B, T)`, by the names of the output's fields.

        `logits (B, T, N)` score positions, `clusters (B, T, P)` are the student's cosines, of the reference's tokens
        `reference_clusters (B, N, P)` the teacher's.
        """
        with torch.autocast(logits.device.type, enabled=False):
            location, accuracy = location_loss(logits, positions)
            losses = {"location_loss": location, "location_accuracy": accuracy}
            losses["loss"] = self.config.location_weight * location
            if clusters is not None and reference_clusters is not None:
                config = self.config
                with torch.no_grad():
                    probabilities = F.softmax(reference_clusters.float() / config.teacher_temperature, dim=-1)
                    assignments = sinkhorn(probabilities.flatten(0, 1), config.sinkhorn_iterations)
                    images = torch.arange(len(positions), device=positions.device)[:, None]
                    rows = (images * reference_clusters.shape[1] + positions.clamp_min(0)).flatten()
                inside, temperature = positions.flatten() >= 0, config.student_temperature
                cluster, mean_entropy = patch_cluster_losses(
                    clusters.flatten(0, 1), assignments, inside, temperature, rows
                )
                losses |= {"cluster_loss": cluster, "mean_entropy_loss": mean_entropy}
                losses["feature_loss"] = cluster + mean_entropy
                losses["loss"] = losses["loss"] + losses["feature_loss"]
        return losses

    def _predict_own_positions(
        self, pixel_values: torch.Tensor, visible_tokens: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> LOCAForPreTrainingOutput:
        """Single-image position prediction: one view, no positions, keys are the visible tokens of the view itself."""
        outputs = self.loca(pixel_values, use_positions=False, **kwargs)
        tokens = self.loca.patch_tokens(outputs)
        logits = self._predict(tokens, tokens[:, visible_tokens])
        positions = torch.arange(tokens.shape[1], device=pixel_values.device).expand(len(tokens), -1)
        return LOCAForPreTrainingOutput(
            **self._losses(logits, None, None, positions),
            reference_logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


def _split(
    values: torch.Tensor | None, num_kept: int, focal_shape: torch.Size | None
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Divides `(batch, tokens, ...)` into the random query's kept tokens and the focal queries'."""
    if values is None or focal_shape is None:
        return values, None
    return values[:, :num_kept], values[:, num_kept:].unflatten(1, focal_shape)
