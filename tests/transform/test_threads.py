"""Tracing beside other threads that trace and that run networks."""

import threading
from collections.abc import Callable

import torch

from labkit.transform import find_channels, get_model
from labkit.transform.channels import Channels
from tests.networks import network, outputs


def summary(channels: Channels) -> list[str]:
    return [*map(str, channels.traced.graph.nodes), *map(str, channels.groups)]


def test_threads_do_not_disturb_each_other() -> None:
    toy, x = get_model("jsc-toy").eval(), torch.randn(8, 16)
    resnet, images = network("resnet")
    resnet.eval()
    y, z = toy(x), outputs(resnet, images)
    expected = summary(find_channels(get_model("jsc-toy"))), summary(find_channels(*network("vgg")))
    errors: list[BaseException] = []
    stop = threading.Event()

    def work(check: Callable[[], None], n: int | None) -> None:
        done = 0
        try:
            while not stop.is_set() if n is None else done < n:
                check()
                done += 1
        except BaseException as error:
            errors.append(error)

    def traces() -> None:
        assert summary(find_channels(get_model("jsc-toy"))) == expected[0]
        model, inputs = network("vgg", 2)
        assert summary(find_channels(model, inputs)) == expected[1]

    def runs() -> None:
        assert torch.equal(toy(x), y)
        assert torch.equal(outputs(resnet, images), z)

    tracing = [threading.Thread(target=work, args=(traces, 12)) for _ in range(3)]
    running = [threading.Thread(target=work, args=(runs, None)) for _ in range(2)]
    for thread in (*tracing, *running):
        thread.start()
    for thread in tracing:
        thread.join()
    stop.set()
    for thread in running:
        thread.join()
    assert errors == []
