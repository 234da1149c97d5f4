import pytest
import torch
from hypothesis import given, settings, strategies as st
from omni_lite.audio.flow import (CALLS, CausalConv1d, Estimator, FlowDecoder, FlowStream, chunk_mask, flow_loss,
                                  flow_path, frame_noise, gaussian_field, solve, time_grid)


def tiny(**kw):
    torch.manual_seed(0)
    args = dict(n_mels=8, prenet_dim=16, prenet_depth=2, channels=16, num_mid_blocks=1, num_heads=2, chunk=4) | kw
    decoder = FlowDecoder(12, **args).eval()
    torch.nn.init.normal_(decoder.estimator.out.weight, std=.3)  # zero at the start: nothing to compare
    return decoder


@settings(max_examples=15, deadline=None)
@given(cuts=st.lists(st.integers(0, 9), min_size=1, max_size=6), method=st.sampled_from(sorted(CALLS)),
       left=st.integers(0, 2), guidance=st.sampled_from([0., .7]))
def test_pieces_equal_whole(cuts, method, left, guidance):
    decoder, n = tiny(left=left), sum(cuts)
    if n == 0: return
    h = torch.randn(2, n, 12)
    stream = FlowStream(decoder, 2, guidance, seed=3, method=method)
    parts = [stream.push(p) for p in h.split(cuts, 1)] + [stream.finish()]
    whole = decoder.sample(h, 2, guidance, seed=3, method=method)
    got = torch.cat([p for p in parts if p.shape[2]], 2)
    assert got.shape == whole.shape == (2, 8, n)
    assert torch.allclose(got, whole, atol=1e-3)


def test_bounded_past_bounds_memory():
    decoder = tiny(left=1)
    stream = FlowStream(decoder, 2)
    for _ in range(10): stream.push(torch.randn(1, 4, 12))
    held = [v[0].shape[2] for c in (stream.prenet_cache, *stream.caches) for v in c.values() if isinstance(v, tuple)]
    assert max(held) == 4


def test_future_chunks_change_nothing():
    decoder, h = tiny(), torch.randn(1, 12, 12)
    other = h.clone(); other[:, 8:] += 1
    a, b = decoder.sample(h, 2), decoder.sample(other, 2)
    assert torch.allclose(a[..., :8], b[..., :8], atol=1e-4) and not torch.allclose(a[..., 8:], b[..., 8:], atol=1e-2)


def test_padding_changes_nothing():
    decoder = tiny()
    h, mask = torch.randn(2, 10, 12), torch.arange(10)[None] < torch.tensor([[10], [6]])
    both = decoder.sample(h, 2, mask=mask)
    assert torch.allclose(both[1:, :, :6], decoder.sample(h[1:, :6], 2, seed=1), atol=1e-4)
    assert torch.isfinite(both).all()


def test_seed_and_temperature():
    decoder, h = tiny(), torch.randn(1, 9, 12)
    assert torch.equal(decoder.sample(h, 2, seed=5), decoder.sample(h, 2, seed=5))
    assert not torch.allclose(decoder.sample(h, 2, seed=5), decoder.sample(h, 2, seed=6))
    assert torch.equal(decoder.sample(h, 2, seed=5, temperature=0.), decoder.sample(h, 2, seed=6, temperature=0.))


def test_loss_trains_every_part():
    decoder, h, mel = tiny().train(), torch.randn(4, 9, 12), torch.randn(4, 8, 9) * 3 - 6
    terms = decoder.loss(h, mel)
    assert set(terms) == {'prior', 'flow'}
    sum(terms.values()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in decoder.parameters())
    assert not torch.equal(decoder.spread, torch.ones(8, 1))


def test_evaluating_the_loss_leaves_buffers_alone():
    decoder = tiny()
    before = {k: v.clone() for k, v in decoder.state_dict().items()}
    decoder.loss(torch.randn(2, 5, 12), torch.randn(2, 8, 5))
    assert all(torch.equal(v, before[k]) for k, v in decoder.state_dict().items())


def test_stats_normalise():
    mel = torch.randn(3, 8, 50) * torch.arange(1, 9)[:, None] - 7
    decoder = tiny().set_stats(mel)
    z = (mel - decoder.mean) / decoder.std
    assert torch.allclose(z.mean((0, 2)), torch.zeros(8), atol=1e-5)
    assert torch.allclose(z.transpose(0, 1).flatten(1).std(1), torch.ones(8), atol=1e-4)
    assert torch.isfinite(tiny().set_stats(torch.full((8, 20), -11.5)).std).all()


def test_overfits_one_mel():
    torch.manual_seed(0)
    decoder = FlowDecoder(6, n_mels=8, prenet_dim=16, prenet_depth=1, channels=16, num_mid_blocks=1, num_heads=2)
    h, mel = torch.randn(4, 10, 6), torch.randn(4, 8, 10) * 2 - 6
    decoder.set_stats(mel)
    opt, log = torch.optim.AdamW(decoder.parameters(), 5e-3), []
    for _ in range(120):
        terms = decoder.loss(h, mel); loss = sum(terms.values())
        opt.zero_grad(); loss.backward(); opt.step(); log.append(terms['prior'].item())
    assert log[-1] < .5 * log[0]


@pytest.mark.parametrize('method,order', [('euler', 1), ('midpoint', 2), ('heun', 2)])
def test_solver_order(method, order):
    field = lambda x, t: -x * (1 + t)[:, None]
    exact = torch.exp(torch.tensor(-1.5, dtype=torch.double))
    err = [abs(solve(field, torch.ones(1, 1, dtype=torch.double), n, method).item() - exact) for n in (16, 32)]
    assert .75 * 2**order < err[0] / err[1] < 1.35 * 2**order


def test_path_and_grid():
    x1, z = torch.randn(5, 3), torch.randn(5, 3)
    for t in (0., .5, 1.):
        x, v = flow_path(x1, z, torch.full((5,), t))
        assert torch.allclose(x + (1 - t) * v, x1, atol=1e-5)
    grid = time_grid(10)
    assert grid[0] == 0 and abs(grid[-1] - 1) < 1e-6 and (grid.diff() > 0).all() and grid[1] < .1
    with pytest.raises(ValueError, match='0 steps'): time_grid(0)


def test_gaussian_field_is_exact_for_a_gaussian():
    torch.manual_seed(0)
    x1 = 2 + .3*torch.randn(20000, 1)
    best = flow_loss(lambda x, t: gaussian_field(x, t, torch.tensor(2.), torch.tensor(.3)), x1)
    for mean, spread in ((2.2, .3), (2., .5), (2., .2)):
        worse = flow_loss(lambda x, t: gaussian_field(x, t, torch.tensor(mean), torch.tensor(spread)), x1)
        assert worse > best


def test_masked_loss_ignores_padding():
    x1, mask = torch.zeros(2, 3, 4), torch.tensor([[[True, True, False, False]]])
    field = lambda x, t: torch.where(mask, torch.zeros_like(x), 1e6*torch.ones_like(x))
    assert flow_loss(field, x1, mask) < 100


@given(start=st.integers(0, 200), length=st.integers(1, 90))
@settings(max_examples=20, deadline=None)
def test_noise_depends_on_the_frame_alone(start, length):
    assert torch.equal(frame_noise(1, start, length, 3), frame_noise(1, 0, 300, 3)[start:start + length])


def test_noise_of_negative_and_large_seeds():
    assert frame_noise(-5, 0, 3, 2).shape == (3, 2)
    assert not torch.equal(frame_noise(2**40, 0, 3, 2), frame_noise(2**41, 0, 3, 2))


def test_mask_shapes():
    m = chunk_mask(torch.ones(1, 10).bool(), 4)[0, 0]
    assert m[4, 7] and m[9, 0] and not m[3, 4]
    assert not chunk_mask(torch.ones(1, 10).bool(), 4, left=1)[0, 0][9, 0]


def test_conv_equals_padded_conv():
    conv, x = CausalConv1d(2, 3, 5, dilation=2), torch.randn(1, 2, 9)
    plain = torch.nn.functional.conv1d(torch.nn.functional.pad(x, (8, 0)), conv.weight, conv.bias, dilation=2)
    assert torch.allclose(conv(x), plain, atol=1e-6)


def test_estimator_does_not_change_length():
    net = Estimator(8, 16, 2, 2, 1)
    for T in (1, 2, 7): assert net(torch.randn(1, 8, T), torch.randn(1, 8, T), torch.rand(1)).shape == (1, 8, T)


def test_finish_without_a_push_and_twice():
    stream = FlowStream(tiny(), 1)
    assert stream.finish().shape == (1, 8, 0)
    stream.push(torch.randn(1, 2, 12))
    assert stream.finish().shape[2] == 2 and stream.finish().shape[2] == 0


def test_wrong_words():
    with pytest.raises(ValueError, match='unknown solver'): tiny().sample(torch.randn(1, 3, 12), method='rk4')
    with pytest.raises(ValueError, match='bins'): tiny().set_stats(torch.zeros(80, 10))
