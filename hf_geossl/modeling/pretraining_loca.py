"""LOCA pretraining: student, teacher, cross-attention, heads and loss (arXiv 2212.02400)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_outputs import ModelOutput
from transformers.utils.generic import can_return_tuple

from .configuration_loca import LOCAConfig
from .heads_loca import LOCAClusterHead, LOCACrossAttentionBlock, LOCAPrototypes
from .modeling_loca import LOCAModel, LOCAPreTrainedModel, init_lecun_normal
from .objectives import location_loss, patch_cluster_losses, sinkhorn
from .reconstruction import attached_reconstruction, attached_task
from .teacher_student import TeacherStudentModel


@dataclass
class LOCAForPreTrainingOutput(ModelOutput):
    """`K` tokens of the random query are kept, `N` positions the reference has, `P` prototypes there are. The cluster
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


class LOCATeacher(nn.Module):
    """The momentum copy of everything that is trained, under the student's names; it gets no gradient."""

    def __init__(self, config: LOCAConfig) -> None:
        super().__init__()
        if config.num_register_tokens:
            raise ValueError(
                f"num_register_tokens must be 0 to pretrain with LOCA, whose tokens are all patches; got "
                f"{config.num_register_tokens}"
            )
        self.loca = LOCAModel(config)
        _add_heads(self, config)
        self.requires_grad_(False)


def _add_heads(module: Any, config: LOCAConfig) -> None:
    height, width = (side // config.patch_size for side in config.image_height_width)
    if config.has_cluster_head:
        module.cluster_head = LOCAClusterHead(config)
    module.cross_attention = LOCACrossAttentionBlock(config)
    module.final_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
    module.position_predictor = nn.Linear(config.hidden_size, height * width)


class LOCAForPreTraining(LOCAPreTrainedModel, TeacherStudentModel):
    """Student, teacher and the losses of LOCA; the student trunk is `loca`, the teacher's `teacher.loca`. The teacher has
    the student's stochastic depth in training.

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
    teacher: Any  # LOCATeacher, as the heads below from _add_heads
    cluster_head: Any
    cross_attention: Any
    final_norm: Any
    position_predictor: Any

    def __init__(self, config: LOCAConfig) -> None:
        super().__init__(config)
        if config.use_class_token:  # the other classes may have one, of weights from elsewhere
            raise ValueError(
                "use_class_token must be False to pretrain with LOCA, whose tokens are all patches; got True"
            )
        self.loca = LOCAModel(config)
        _add_heads(self, config)
        self.teacher = LOCATeacher(config)
        self.reconstruction = attached_task(config)  # last, so that all else initialises as without it
        self.post_init()
        self.freeze_untrained()
        self.copy_student_to_teacher()

    def freeze_untrained(self) -> None:
        """Keeps gradients from the teacher, and from the positions (they stay 0) with `location_target="self"`."""
        super().freeze_untrained()
        if self.config.location_target == "self":
            self.loca.embeddings.position_embeddings.requires_grad_(False)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, LOCAPrototypes):
            init_lecun_normal(module.weight)
            init.copy_(module.weight, F.normalize(module.weight, dim=1))
        else:
            super()._init_weights(module)

    def draw_kept_query_tokens(self, num_tokens: int) -> torch.Tensor:
        """Draws which tokens of the random query enter the encoder, from torch's global CPU generator.

        Args:
            num_tokens (`int`): Tokens of the random query.

        Returns:
            `torch.Tensor` of shape `(kept,)`: raster indices without repetition, in random order, on the CPU.
        """
        kept = self.config.num_kept_query_tokens
        return torch.randperm(num_tokens)[:kept]

    def draw_visible_reference_tokens(self) -> torch.Tensor:
        """Draws which tokens of the reference can be looked at, from torch's global CPU generator.

        Returns:
            `torch.Tensor` of shape `(visible,)`: raster indices, as `config.reference_selection` says, on the CPU.
        """
        num_tokens = self.position_predictor.out_features
        visible = int(self.config.visible_reference_ratio * num_tokens)
        if not 0 < visible <= num_tokens:
            visible = num_tokens
        if self.config.reference_selection == "unstructured":
            return torch.randperm(num_tokens)[:visible]
        start = 0
        if self.config.reference_selection == "consecutive":
            start = int(torch.randint(num_tokens - visible + 1, ()))
        return torch.arange(start, start + visible)

    def _check_views(
        self,
        reference: torch.Tensor,
        random_query: torch.Tensor | None,
        random_positions: torch.Tensor | None,
        focal_queries: torch.Tensor | None,
        focal_positions: torch.Tensor | None,
    ) -> None:
        size, patch_size = self.config.image_height_width, self.config.patch_size
        if reference.ndim != 4 or tuple(reference.shape[-2:]) != size:
            raise ValueError(
                f"reference_pixel_values must have shape (batch, channels, {size[0]}, {size[1]}), the image_size of the "
                f"configuration, got {tuple(reference.shape)}"
            )
        if (focal_queries is None) != (focal_positions is None):
            raise ValueError("focal_query_pixel_values and focal_query_positions come together, or neither")
        for name, pixels, positions, dimensions in (
            ("random_query", random_query, random_positions, 4),
            ("focal_query", focal_queries, focal_positions, 5),
        ):
            if pixels is None or positions is None:
                continue
            if pixels.ndim != dimensions or len(pixels) != len(reference):
                axes = "batch, channels, height, width" if dimensions == 4 else "batch, queries, channels, side, side"
                raise ValueError(
                    f"{name}_pixel_values must have shape ({axes}) with a batch of {len(reference)}, "
                    f"got {tuple(pixels.shape)}"
                )
            rows, columns = (side // patch_size for side in pixels.shape[-2:])
            shape = (*pixels.shape[: dimensions - 3], rows * columns)
            if positions.shape != shape:
                raise ValueError(
                    f"{name}_positions must have shape {shape}, one for every token before any is dropped, "
                    f"got {tuple(positions.shape)}"
                )
            if positions.device.type == "cpu" and positions.numel():
                low, high = int(positions.min()), int(positions.max())
                if low < -1 or high >= self.position_predictor.out_features:
                    raise ValueError(
                        f"{name}_positions must be raster indices into the reference's "
                        f"{self.position_predictor.out_features} tokens or -1, got {low} to {high}"
                    )

    @staticmethod
    def check_token_indices(name: str, tokens: Any, num_tokens: int, device: torch.device) -> torch.Tensor:
        """Indices `(tokens,)` on the device, checked where they are without waiting for it."""
        tokens = torch.as_tensor(tokens)
        if tokens.ndim != 1 or not len(tokens) or tokens.dtype == torch.bool or tokens.is_floating_point():
            raise ValueError(
                f"{name} must be integers of shape (tokens,), at least one, the same for the whole batch, "
                f"got {tokens.dtype} of shape {tuple(tokens.shape)}"
            )
        if tokens.device.type == "cpu" and not 0 <= int(tokens.min()) <= int(tokens.max()) < num_tokens:
            raise ValueError(
                f"{name} must be raster indices from 0 to {num_tokens - 1}, got {int(tokens.min())} to {int(tokens.max())}"
            )
        return tokens.to(device, torch.long, non_blocking=True)

    def _predict(self, queries: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        """Scores of positions `(batch, tokens, N)` for query tokens that look at reference tokens."""
        references = references.to(queries.dtype)  # the teacher is in float32, whatever the student's dtype
        return self.position_predictor(self.final_norm(self.cross_attention(queries, references)))

    @torch.no_grad()
    def predict_positions(
        self,
        reference_pixel_values: torch.Tensor | None,
        query_pixel_values: torch.Tensor,
        visible_reference_tokens: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Where each patch of a query lies in the reference; nothing is random.

        Args:
            reference_pixel_values (`torch.Tensor` of shape `(batch, channels, S, S)`): References of `image_size`; not
                read with `location_target="self"`, where a query looks at itself.
            query_pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): Queries.
            visible_reference_tokens (`torch.Tensor` of shape `(M,)`, *optional*): Tokens of the reference that queries
                look at; all by default.

        Returns:
            `torch.Tensor` of shape `(batch, tokens, N)`: scores of the reference's positions in raster order, for the
            query's tokens in raster order. Call it in eval mode: stochastic depth would be random otherwise.
        """
        queries = self.loca(query_pixel_values, use_positions=self.config.has_cluster_head).last_hidden_state
        of_itself = self.config.location_target == "self"
        tokens = queries.shape[1] if of_itself else self.position_predictor.out_features
        if visible_reference_tokens is None:
            visible_reference_tokens = torch.arange(tokens)
        visible_reference_tokens = self.check_token_indices(
            "visible_reference_tokens", visible_reference_tokens, tokens, queries.device
        )
        if of_itself:
            return self._predict(queries, queries[:, visible_reference_tokens])
        if self.config.has_cluster_head:
            references = self.teacher.loca(reference_pixel_values).last_hidden_state[:, visible_reference_tokens]
        else:
            references = self.loca(reference_pixel_values, kept_tokens=visible_reference_tokens).last_hidden_state
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
        **kwargs: Any,
    ) -> LOCAForPreTrainingOutput:
        """Args:
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
                look at; drawn where absent.
            transformed_pixel_values (`torch.Tensor` of shape `(batch, channels, S, S)`, *optional*): The reference
                transformed; needed where something is reconstructed, and not read elsewhere.
            intermediate_pixel_values (`torch.Tensor` of shape `(batch, K, channels, S, S)`, *optional*): The images on
                the way there, the same.

        Returns:
            `LOCAForPreTrainingOutput`.

        Raises:
            ValueError: If shapes do not fit together, a position or token does not exist, the reference has not the
                configuration's `image_size`, or the images of the reconstruction are missing.

        Source: arXiv 2212.02400; the reconstruction arXiv 2503.18753.
        """
        if focal_query_pixel_values is not None and focal_query_pixel_values.shape[1:2] == (0,):
            focal_query_pixel_values = focal_query_positions = None
        self._check_views(
            reference_pixel_values,
            random_query_pixel_values,
            random_query_positions,
            focal_query_pixel_values,
            focal_query_positions,
        )
        device = reference_pixel_values.device
        if visible_reference_tokens is None:
            visible_reference_tokens = self.draw_visible_reference_tokens()
        visible_reference_tokens = self.check_token_indices(
            "visible_reference_tokens", visible_reference_tokens, self.position_predictor.out_features, device
        )
        if self.config.location_target == "self":
            return self._predict_own_positions(reference_pixel_values, visible_reference_tokens, **kwargs)
        if random_query_pixel_values is None or random_query_positions is None:
            raise ValueError(
                "random_query_pixel_values and random_query_positions are needed: take them from LOCAViews with the views"
            )
        if kept_query_tokens is None:
            kept_query_tokens = self.draw_kept_query_tokens(random_query_positions.shape[1])
        kept_query_tokens = self.check_token_indices(
            "kept_query_tokens", kept_query_tokens, random_query_positions.shape[1], device
        )

        reference_clusters = None
        if self.config.has_cluster_head:
            with torch.no_grad():
                references = self.teacher.loca(reference_pixel_values).last_hidden_state
                reference_clusters = self.teacher.cluster_head(references)  # (B, N, P)
            references = references[:, visible_reference_tokens]
        else:
            references = self.loca(reference_pixel_values, kept_tokens=visible_reference_tokens).last_hidden_state

        outputs = self.loca(
            random_query_pixel_values,
            kept_tokens=kept_query_tokens,
            use_positions=self.config.has_cluster_head,
            **kwargs,
        )
        queries = outputs.last_hidden_state  # (B, K, D)
        positions = random_query_positions[:, kept_query_tokens]
        num_kept, focal_shape = queries.shape[1], (0, 0)
        if focal_query_pixel_values is not None and focal_query_positions is not None:
            focal = self.loca(focal_query_pixel_values.flatten(0, 1), use_positions=self.config.has_cluster_head)
            focal_shape = (focal_query_pixel_values.shape[1], focal.last_hidden_state.shape[1])  # queries, tokens
            # tokens of all queries of an image look at the same reference, independently of each other
            focal_tokens = focal.last_hidden_state.unflatten(0, (len(queries), -1)).flatten(1, 2)
            queries = torch.cat([queries, focal_tokens], dim=1)
            positions = torch.cat([positions, focal_query_positions.flatten(1)], dim=1)  # (B, K + Q * n)

        logits = self._predict(queries, references)
        clusters = self.cluster_head(queries) if self.config.has_cluster_head else None
        with torch.autocast(device.type, enabled=False):
            location, accuracy = location_loss(logits, positions)
            feature_loss, cluster_loss, mean_entropy_loss = None, None, None
            if clusters is not None and reference_clusters is not None:
                cluster_loss, mean_entropy_loss = self._cluster_losses(clusters, reference_clusters, positions)
                feature_loss = cluster_loss + mean_entropy_loss
            loss = self.config.location_weight * location
            loss = loss if feature_loss is None else loss + feature_loss

        reconstructed: dict[str, torch.Tensor] = {}
        if self.reconstruction is not None:
            # the student sees the kept tokens of the random query, and nothing of the others
            tokens = outputs.last_hidden_state
            whole = tokens.new_zeros(len(tokens), random_query_positions.shape[1], tokens.shape[2])
            reconstructed = attached_reconstruction(
                self,
                whole.index_copy(1, kept_query_tokens, tokens),
                random_query_pixel_values.shape,
                transformed_pixel_values,
                intermediate_pixel_values,
            )
            loss = loss + self.config.reconstruction_weight * reconstructed["reconstruction_loss"]

        def split(values: torch.Tensor | None) -> tuple[torch.Tensor | None, torch.Tensor | None]:
            if values is None or not focal_shape[0]:
                return values, None
            return values[:, :num_kept], values[:, num_kept:].unflatten(1, focal_shape)

        random_query_logits, focal_query_logits = split(logits)
        random_query_clusters, focal_query_clusters = split(clusters)
        return LOCAForPreTrainingOutput(
            loss=loss,
            location_loss=location,
            feature_loss=feature_loss,
            cluster_loss=cluster_loss,
            mean_entropy_loss=mean_entropy_loss,
            location_accuracy=accuracy,
            random_query_logits=random_query_logits,
            focal_query_logits=focal_query_logits,
            random_query_cluster_logits=random_query_clusters,
            focal_query_cluster_logits=focal_query_clusters,
            reference_cluster_logits=reference_clusters,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **reconstructed,
        )

    def _cluster_losses(
        self, clusters: torch.Tensor, reference_clusters: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses of the student's cosines `(B, T, P)`, against the teacher's `(B, N, P)` at `positions (B, T)`."""
        with torch.no_grad():
            probabilities = F.softmax(reference_clusters.float() / self.config.teacher_temperature, dim=-1)
            assignments = sinkhorn(probabilities.flatten(0, 1), self.config.sinkhorn_iterations)
            images = torch.arange(len(positions), device=positions.device)[:, None]
            rows = images * reference_clusters.shape[1] + positions.clamp_min(0)
        return patch_cluster_losses(
            clusters.flatten(0, 1),
            assignments,
            positions.flatten() >= 0,
            self.config.student_temperature,
            rows.flatten(),
        )

    def _predict_own_positions(
        self, pixel_values: torch.Tensor, visible_tokens: torch.Tensor, **kwargs: Any
    ) -> LOCAForPreTrainingOutput:
        """Single-image position prediction: one view, no positions, keys are the visible tokens of the view itself."""
        outputs = self.loca(pixel_values, use_positions=False, **kwargs)
        tokens = outputs.last_hidden_state
        logits = self._predict(tokens, tokens[:, visible_tokens])
        with torch.autocast(pixel_values.device.type, enabled=False):
            positions = torch.arange(tokens.shape[1], device=pixel_values.device).expand(len(tokens), -1)
            location, accuracy = location_loss(logits, positions)
        return LOCAForPreTrainingOutput(
            loss=self.config.location_weight * location,
            location_loss=location,
            location_accuracy=accuracy,
            reference_logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


__all__ = ["LOCAForPreTraining", "LOCAForPreTrainingOutput"]
