"""Settings that nothing would read, because another one is missing or says otherwise: refused where somebody waits for
what they were to do, else told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

from .config import TrainConfig

_NEEDS = {
    "ignore_keys": "ckpt_path",
    "ckpt_variant": "ckpt_path",
    "ckpt_part": "ckpt_path",
    "decoder_ddconfig": "ddconfig",
}
"""An argument of the model -> the one that it belongs to."""
_DISCRIMINATOR = ("disc_start", "disc_loss", "disc_factor", "disc_width", "disc_layers", "disc_norm")


def unread_problems(name: str, params: Mapping[str, Any]) -> list[str]:
    """The problems of arguments of the model `name` without the one that they belong to."""
    problems = [
        f"model.params.{key}: expected {owner} beside it, got none: add that, or remove {key}"
        for key, owner in _NEEDS.items()
        if name != "TinyDistillation" and params.get(key) and params.get(owner) is None
    ]
    loss = _loss(params)
    given: Any = loss.get("params") or {}
    judged = isinstance(given, Mapping) and _last(loss) == "AutoencoderLoss" and "disc_weight" not in given
    found = [key for key in _DISCRIMINATOR if judged and key in given]
    if found:
        problems.append(
            f"lossconfig.params.{found[0]}: expected disc_weight beside it, got none, hence no discriminator: "
            f"add disc_weight=0.5, or remove {', '.join(found)}"
        )
    return problems


def unread_notes(config: TrainConfig, batches: int, judged_from: int | None) -> Iterable[str]:
    """What of a configuration changes nothing in a training of so many batches.

    Args:    judged_from: the batch from which a discriminator counts; None where there is none.
    """
    params, optimizer = config.model.params, config.optimizer
    if params.get("ckpt_path") is not None and params.get("start", "default") != "default":
        yield f"model.params.start ({params['start']}) changes nothing: the first weights are those of ckpt_path"
    if config.model.target.endswith("TinyDistillation"):
        yield from _of_distillation(params)
    if judged_from is not None and judged_from >= batches:
        yield (
            f"the discriminator counts from batch {judged_from} on, and this training has {batches}: "
            "lower disc_start to have it"
        )
    unused = [f"optimizer.{name}" for name in ("discriminator_lr", "discriminator_target") if _given(optimizer, name)]
    if judged_from is None and unused:
        yield f"{', '.join(unused)}: nothing reads this, as the loss has no discriminator"
    if optimizer.schedule == "constant" and _given(optimizer, "final_share"):
        yield "optimizer.final_share changes nothing: say optimizer.schedule=cosine or linear, too"
    shares = [share for share, _, _ in config.data.stages]
    for share, after in zip(shares, [*shares[1:], 1.0], strict=False):  # without stages there is nothing
        if round(share * batches) == round(after * batches):
            yield f"data.stages: the stage from {share:g} on has no batch in a training of {batches}"
    if optimizer.warm_up >= batches:
        yield (
            f"optimizer.warm_up takes {optimizer.warm_up} batches, and this training has {batches}: the full rate "
            "comes at the end or never"
        )


def _of_distillation(params: Mapping[str, Any]) -> Iterable[str]:
    """Of a half that is not made."""
    train = params.get("train", "decoder")
    train = (train,) if isinstance(train, str) else train
    if "encoder" not in train and "latent_weight" in params:
        yield "model.params.latent_weight changes nothing: no encoder is made, model.params.train=[encoder,decoder]"
    loss = _loss(params)
    if "decoder" not in train and loss:
        yield "model.params.lossconfig changes nothing: no decoder is made, model.params.train=[encoder,decoder]"
    given: Any = loss.get("params") or {}
    if isinstance(given, Mapping) and cast("Mapping[str, Any]", given).get("kl_weight"):
        yield "model.params.lossconfig.params.kl_weight changes nothing: a distilled autoencoder has no KL"


def _given(section: Any, name: str) -> bool:
    """Whether a setting is another one than the default."""
    return getattr(section, name) != getattr(type(section), name)


def _loss(params: Mapping[str, Any]) -> Mapping[str, Any]:
    loss: Any = params.get("lossconfig")
    return cast("Mapping[str, Any]", loss) if isinstance(loss, Mapping) else {}


def _last(loss: Mapping[str, Any]) -> str:
    return str(loss.get("target", "AutoencoderLoss")).rpartition(".")[2]
