"""What only a GPU can show: streams, CUDA graphs, memory, and that a call never synchronises."""

import gc
import threading

import pytest
import torch
from cases import BF16, F32, gradients, leaves, operands, weights_of
from lora_kernels import dropout_state, linear, linears

pytestmark = pytest.mark.gpu

SIZES = ((256, 16), (128, 8), (128, 8))
T = [(1,), (16,), (200,), (4, 512)]


def case(masters=F32, t=(4, 512)):
    return operands("cuda", BF16, masters, t=t, k=256, sizes=SIZES)


def both_passes(x, projections, weights, *dropout):
    """All results, without the graph: its nodes that accumulate would stay on the stream that made
    them, and a capture on another would wait for it."""
    h = linears(x, projections, *dropout)
    of_weights = gradients(h, leaves(x, projections), weights)
    return [*(one.detach() for one in h), *of_weights]


@pytest.mark.parametrize("t", T)
def test_two_runs_have_the_same_bits(cuda, t):
    x, projections = case(t=t)
    weights = weights_of(linears(x, projections))
    first = both_passes(x, projections, weights)
    assert all(map(torch.equal, first, both_passes(x, projections, weights)))


@pytest.mark.parametrize("masters", [BF16, F32])
@pytest.mark.parametrize("t", T)
def test_streams_beside_each_other(cuda, t, masters):
    x, projections = case(masters, t)
    weights = weights_of(linears(x, projections))
    want = both_passes(x, projections, weights)
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(4)]
    results = []
    for _ in range(20):
        for stream in streams:
            with torch.cuda.stream(stream):
                results.append(both_passes(x, projections, weights))
    torch.cuda.synchronize()
    for got in results:
        assert all(map(torch.equal, got, want))


def test_threads_with_streams_of_their_own(cuda):
    x, projections = case()
    weights = weights_of(linears(x, projections))
    want = both_passes(x, projections, weights)
    torch.cuda.synchronize()
    failed = []

    def work():
        try:
            with torch.cuda.stream(torch.cuda.Stream()):
                for _ in range(20):
                    got = both_passes(x, projections, weights)
                    torch.cuda.current_stream().synchronize()
                    assert all(map(torch.equal, got, want))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed, failed


def captured(work):
    """A graph of this work, and where it puts its results."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = work()
    return graph, results


@pytest.mark.parametrize("masters", [BF16, F32])
@pytest.mark.parametrize("t", T)
def test_a_graph_reads_new_values(cuda, t, masters):
    x, projections = case(masters, t)
    weights = weights_of(linears(x, projections))
    graph, results = captured(lambda: both_passes(x, projections, weights))
    for seed in range(3):
        with torch.no_grad():
            x.copy_(operands("cuda", BF16, masters, t=t, k=256, seed=10 + seed)[0])
            projections[1][1].mul_(0.5)
        graph.replay()
        want = both_passes(x, projections, weights)
        torch.cuda.synchronize()
        assert all(map(torch.equal, results, want))


@pytest.mark.parametrize("masters", [BF16, F32])
def test_graphs_run_beside_each_other_and_beside_calls(cuda, masters):
    """Each has scratch and flags of its own, though both were captured on one stream."""
    cases = [case(masters, (1, 256)), case(masters, (1, 256))]
    weights = weights_of(linears(*cases[0]))
    want = both_passes(*cases[0], weights)
    graphs = [captured(lambda one=one: both_passes(*one, weights)) for one in cases]
    streams = [torch.cuda.Stream() for _ in range(2)]
    torch.cuda.synchronize()
    for _ in range(50):
        for stream, (graph, _) in zip(streams, graphs, strict=True):
            with torch.cuda.stream(stream):
                graph.replay()
        got = both_passes(*cases[0], weights)
        torch.cuda.synchronize()
        for results in (got, *(results for _, results in graphs)):
            assert all(map(torch.equal, results, want))


@pytest.mark.parametrize("masters", [BF16, F32])
@pytest.mark.parametrize("t", T)
def test_a_graph_has_another_mask_at_each_replay(cuda, t, masters):
    x, projections = case(masters, t)
    weights = weights_of(linears(x, projections))

    def work():
        state = dropout_state(x.device)
        return [state, *both_passes(x, projections, weights, 0.5, state)]

    graph, results = captured(work)
    states = set()
    for _ in range(3):
        graph.replay()
        state, *got = (one.clone() for one in results)
        want = both_passes(x, projections, weights, 0.5, state)
        assert all(map(torch.equal, got, want))
        states.add(tuple(state.tolist()))
    assert len(states) == 3


@pytest.mark.parametrize("t", T)
def test_a_graph_without_a_state_draws_masks_too(cuda, t):
    x, projections = case(t=t)
    weights = weights_of(linears(x, projections))
    torch.cuda.manual_seed(7)
    graph, results = captured(lambda: both_passes(x, projections, weights, 0.5))
    seen = []
    for seed in (1, 1, 2):
        torch.cuda.manual_seed(seed)
        graph.replay()
        seen.append([one.clone() for one in results])
    assert all(map(torch.equal, seen[0], seen[1]))
    assert not torch.equal(seen[0][0], seen[2][0])


def test_compiled_with_cuda_graphs(cuda):
    torch._dynamo.reset()
    x, projections = case()
    weights = weights_of(linears(x, projections))
    want = both_passes(x, projections, weights)
    compiled = torch.compile(linears, mode="reduce-overhead", fullgraph=True)
    for _ in range(4):
        torch.compiler.cudagraph_mark_step_begin()
        h = compiled(x, projections)
        got = [*(one.clone() for one in h), *gradients(h, leaves(x, projections), weights)]
        assert all(map(torch.equal, got, want))


def test_memory_is_given_back(cuda):
    x, projections = case()
    weights = weights_of(linears(x, projections))
    both_passes(x, projections, weights)
    gc.collect()
    before = torch.cuda.memory_allocated()
    for _ in range(5):
        both_passes(x, projections, weights)
    gc.collect()
    assert torch.cuda.memory_allocated() == before


@pytest.mark.parametrize("p", [0.0, 0.5])
def test_a_call_never_synchronises(cuda, p):
    x, projections = case()
    weights = weights_of(linears(x, projections))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        both_passes(x, projections, weights, p)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("p", [0.0, 0.5])
def test_a_call_does_not_wait_for_the_gpu(cuda, p):
    x, projections = case()
    weights = weights_of(linears(x, projections))
    both_passes(x, projections, weights, p)
    torch.cuda.synchronize()
    torch.cuda._sleep(1_000_000_000)
    both_passes(x, projections, weights, p)
    assert not torch.cuda.current_stream().query()
    torch.cuda.synchronize()


@pytest.mark.parametrize("t", T)
def test_another_device_than_the_current_one(cuda, t):
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device")
    x, projections = case(t=t)
    weights = weights_of(linears(x, projections))
    want = both_passes(x, projections, weights)
    with torch.cuda.device(1):
        got = both_passes(x, projections, weights)
    assert all(one.device.index == 0 for one in got) and all(map(torch.equal, got, want))


def test_f32_is_refused(cuda):
    x, projections = operands("cuda", F32, F32)
    with pytest.raises(ValueError, match=r"x is torch\.float32 on cuda, expected bfloat16"):
        linear(x, *projections[0])
    x, projections = operands("cuda", BF16, BF16)
    w0, a, b, scale = projections[0]
    with pytest.raises(ValueError, match="b is on cpu, but x on cuda:0"):
        linear(x, w0, a, b.cpu(), scale)
