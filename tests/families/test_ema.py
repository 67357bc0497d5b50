"""The moving average: its numbers, its names, and the cases in which the original goes wrong."""

import copy

import pytest
import torch
from exact_vae.vae_model.families.ldm.ema import LitEma
from torch import Tensor, nn

pytestmark = pytest.mark.usefixtures("one_thread")


def net(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(70)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).to(dtype)


def move(model: nn.Module, value: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)


def shadows(ema: LitEma) -> dict[str, Tensor]:
    return {name: ema.get_buffer(shadow) for name, shadow in ema.m_name2s_name.items()}


def test_a_bad_decay_is_refused() -> None:
    for decay in (-0.1, 1.1):
        with pytest.raises(ValueError, match=f"decay: expected 0 to 1, got {decay}"):
            LitEma(net(), decay)


def test_constant_decay_equals_diffusers() -> None:
    training_utils = pytest.importorskip("diffusers.training_utils")
    model = net()
    ours = LitEma(model, 0.75, use_num_upates=False)
    theirs = training_utils.EMAModel(model.parameters(), decay=0.75, min_decay=0.75)
    theirs.step(model.parameters())  # its first step only copies
    for _ in range(20):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        ours(model)
        theirs.step(model.parameters())
    for shadow, expected in zip(shadows(ours).values(), theirs.shadow_params, strict=True):
        torch.testing.assert_close(shadow, expected, rtol=0, atol=0)  # the same operations in the same order


def test_without_a_step_nothing_moves_and_with_decay_0_it_follows_at_once() -> None:
    model = net()
    ema, fast = LitEma(model), LitEma(model, 0.0)
    before = {name: shadow.clone() for name, shadow in shadows(ema).items()}
    move(model, 5)
    assert all(shadow.equal(before[name]) for name, shadow in shadows(ema).items())
    fast(model)
    assert all(shadow.eq(5).all() for shadow in shadows(fast).values())
    ema(model)
    first = {name: shadow.clone() for name, shadow in shadows(ema).items()}
    ema(model)
    assert all(not first[n].equal(before[n]) and not shadow.equal(first[n]) for n, shadow in shadows(ema).items())


def test_the_state_survives_saving_and_goes_on_the_same() -> None:
    model = net()
    ema = LitEma(model)
    move(model, 1)
    ema(model)
    again = LitEma(net())
    again.load_state_dict(copy.deepcopy(ema.state_dict()))
    for one in (ema, again):
        one(model)
    assert int(again.num_updates) == 2
    assert all(shadow.equal(shadows(again)[name]) for name, shadow in shadows(ema).items())


def test_the_warm_up_can_begin_again() -> None:
    model = net()
    ema = LitEma(model, 0.9999, use_num_upates=False)
    ema(model)
    assert int(ema.num_updates) == -1
    ema.reset_num_updates()
    ema(model)
    assert int(ema.num_updates) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_shadows_of_16_bit_parameters_move_by_less_than_16_bits_hold(dtype: torch.dtype) -> None:
    model = net(dtype)
    move(model, 1)
    ema = LitEma(model, 0.9999, use_num_upates=False)
    move(model, 2)
    for _ in range(10):
        ema(model)
    expected = torch.tensor(2 - 0.9999**10)
    for shadow in shadows(ema).values():
        assert shadow.dtype == torch.float32
        # 0.9999 in float32 is off by 2^-25, 1 - d by as much: 3e-4 of the way of 1e-3.
        torch.testing.assert_close(shadow, expected.expand_as(shadow), rtol=0, atol=3e-6)
    ema.copy_to(model)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


def test_casting_narrows_no_shadow_and_may_widen_it() -> None:
    model = net()
    model.ema = LitEma(model)
    for cast in (model.half, model.bfloat16):
        cast()
        assert {shadow.dtype for shadow in shadows(model.ema).values()} == {torch.float32}
        assert next(model.parameters()).dtype != torch.float32
    assert shadows(model.ema)["0.weight"].equal(net()[0].weight)  # not by way of 16 bits
    model.double()
    assert {shadow.dtype for shadow in shadows(model.ema).values()} == {torch.float64}
    assert model.ema.num_updates.dtype == torch.int
    model.to("meta")
    assert shadows(model.ema)["0.weight"].is_meta


def test_names_that_collide_without_dots_are_refused_together() -> None:
    model = nn.Module()
    model.ab, model.a = nn.Linear(1, 1, bias=False), nn.Module()
    model.a.b, model.decay = nn.Linear(1, 1, bias=False), nn.Parameter(torch.zeros(1))
    message = (
        r"expected names that differ without their dots, got a.b.weight and ab.weight; decay and a part of LitEma: "
        "rename one"
    )
    with pytest.raises(ValueError, match=message):
        LitEma(model)
    model.ab.requires_grad_(False)
    del model.decay
    ema = LitEma(model)
    model.ab.requires_grad_(True)
    with pytest.raises(ValueError, match=r"ab.weight and a.b.weight"):
        ema(model)


def test_parameters_that_become_trainable_later_and_those_frozen_later() -> None:
    model = net()
    model[0].requires_grad_(False)
    ema = LitEma(model, 0.5, use_num_upates=False)
    assert set(ema.m_name2s_name) == {"1.weight", "1.bias"}
    model.requires_grad_(True)
    move(model, 3)
    ema(model)
    assert shadows(ema)["0.weight"].eq(3).all()  # begins from its value then
    assert not shadows(ema)["1.weight"].eq(3).all()
    model.requires_grad_(False)
    move(model, 5)
    ema(model)
    assert shadows(ema)["0.weight"].eq(4).all()


def test_another_model_and_a_missing_store_are_refused() -> None:
    ema = LitEma(net())
    for call in (ema, ema.copy_to):
        with pytest.raises(ValueError, match=r"expected the model it was made for, got one without 1.bias, 1.weight"):
            call(nn.Sequential(nn.Linear(3, 4)))
    model = net()
    with pytest.raises(RuntimeError, match="expected the parameters of the last store, got 4 for 0 kept: store first"):
        ema.restore(model.parameters())
    ema.store(model.parameters())
    with pytest.raises(RuntimeError, match="got 2 for 4 kept"):
        ema.restore(model[0].parameters())


def test_shadows_carry_no_gradient_and_change_none() -> None:
    model = net()
    ema = LitEma(model)
    model(torch.ones(1, 3)).sum().backward()
    ema(model)
    ema.copy_to(model)
    assert not any(shadow.requires_grad for shadow in ema.buffers())
    assert not list(ema.parameters())
    assert all(parameter.grad is not None and parameter.requires_grad for parameter in model.parameters())


def test_what_was_kept_stays_where_another_model_is_given_to_restore() -> None:
    model, other = nn.Linear(2, 2), nn.Linear(3, 2)
    average, before = LitEma(model), model.weight.detach().clone()
    average.store(model.parameters())
    nn.init.zeros_(model.weight)
    with pytest.raises(
        RuntimeError, match=r"restore: expected .*, got \(2, 3\) for \(2, 2\) at 0: give the same model"
    ):
        average.restore(other.parameters())
    average.restore(model.parameters())
    assert torch.equal(model.weight, before)
