"""Findings about where dropout stands: before BatchNorm, before a non-linearity, on the output, on maps."""

from collections.abc import Iterator

from mcdrop.reporting.findings.table import NETWORK, Evidence, Place, finding


@finding(
    "dropout-before-batchnorm",
    "warning",
    title="dropout directly before BatchNorm",
    source="Li et al. 2018, arXiv 1801.05134",
    advice="Move the dropout behind BatchNorm and its activation and train again. Until then compare the "
    "deterministic prediction with the mean over passes before you trust either.",
)
def _before_batch_norm(evidence: Evidence) -> Iterator[tuple[Place, str]]:
    for site, place, placement in evidence.placed:
        if placement.batch_norm and site.kind not in ("alpha_dropout", "feature_alpha_dropout"):
            yield (
                place,
                "BatchNorm gathered its running variance with dropout on, where it is larger (1/(1-p) times for "
                "activations of mean 0): evaluation mode sees another distribution than training did (variance shift).",
            )


@finding(
    "batchnorm-after-join",
    "note",
    title="dropout before BatchNorm, behind a concatenation",
    source="Li et al. 2018, arXiv 1801.05134",
    advice="Compare the deterministic prediction with the mean over passes; with augmentation and BatchNorm such a "
    "network usually needs no dropout inside.",
)
def _before_joined_batch_norm(evidence: Evidence) -> Iterator[tuple[Place, str]]:
    for site, place, placement in evidence.placed:
        if placement.batch_norm_joined and site.kind not in ("alpha_dropout", "feature_alpha_dropout"):
            yield (
                place,
                "Its channels are joined with others and read by BatchNorm, whose running variance was gathered with "
                "dropout on (variance shift in those channels).",
            )


@finding(
    "dropout-before-activation",
    "warning",
    title="dropout before a non-linearity",
    source="Srivastava et al. 2014, section 4: dropout acts on the outputs of a layer's activation",
    advice="Put the dropout behind the activation and train again. (Before or after ReLU and LeakyReLU is the same.)",
)
def _before_activation(evidence: Evidence) -> Iterator[tuple[Place, str]]:
    for _, place, placement in evidence.placed:
        if placement.activation is not None and not placement.on_output:
            yield (
                place,
                f"{placement.activation} reads the masked values: kept units are scaled before it, so that their mean "
                "is not kept behind it, and a dropped unit is 0 only where the function is 0 at 0.",
            )


@finding(
    "dropout-on-output",
    "warning",
    title="dropout on the output",
    source="Srivastava et al. 2014, section 4: input and hidden layers are dropped, outputs are not",
    advice="Put the dropout before the last layer and train again.",
)
def _on_output(evidence: Evidence) -> Iterator[tuple[Place, str]]:
    for _, place, placement in evidence.placed:
        if placement.on_output:
            yield (
                place,
                "No layer follows, so a pass sets parts of the answer itself to 0, and the spread over passes only "
                "repeats p and the size of the output: it says nothing about what the network knows.",
            )


@finding(
    "unit-wise-on-maps",
    "warning",
    title="unit-wise dropout on convolutional maps",
    source="Tompson et al. 2015, arXiv 1411.4280; Ghiasi et al. 2018, arXiv 1810.12890",
    advice="Drop whole channels (nn.Dropout2d) or blocks (DropBlock) and train again.",
)
def _unit_wise_on_maps(evidence: Evidence) -> Iterator[tuple[Place, str]]:
    for _, place, placement in evidence.placed:
        if placement.unit_wise_on_maps:
            yield (
                place,
                "Neighbouring positions carry nearly the same information, so what one loses the next one brings: "
                "single positions dropped regularise little, and the spread over passes averages out.",
            )


@finding(
    "last-layer-only",
    "note",
    title="only the last layer is stochastic",
    source="Verdoja & Kyrki 2020, arXiv 2008.02627",
    advice="Nothing, if the doubt of the last layer is what you want. For more, train with dropout further inside.",
)
def _last_layer_only(evidence: Evidence) -> Iterator[tuple[Place, str]]:
    after = [placement.weighted_after for _, _, placement in evidence.placed]
    if after and max(after) == 1:
        yield (
            NETWORK,
            "The noise passes one layer with weights. Many passes cost hardly more than one, and the features before "
            "it count as known exactly: an input unlike the training data can look certain.",
        )
