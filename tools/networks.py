"""Print what labkit does with networks that others wrote, as Markdown tables.

    pip install pytorchcv torchvision timm transformers
    python tools/networks.py > networks.md
    python tools/networks.py timm/vit_tiny_patch16_224 torch/lstm

Each network has random weights and statistics, in float64, and images of the smallest size that it
takes. Every free channel group is widened by 1.5 with kept weights, which is exact if the outputs
agree. Each network is measured in a process of its own with a time limit.

With `--pruning` (`pip install torch-pruning`) it prints instead what Torch-Pruning can do with some
of them: halve their channels, as labkit does, too. The reference is no column: it knows only chains
of linear layers, so it can do none of these.
"""

import argparse
import dataclasses
import importlib
import multiprocessing
import re
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from labkit import LabkitError, channel_multiplier_transform_pass, cost_of, find_channels
from labkit.operators import operator_of

# Package → names of its networks: a small one of each family.
NETWORKS = {
    "pytorchcv": """
        airnet50_1x64d_r2 alexnet bam_resnet18 bn_vgg11 bninception cbam_resnet18 cgnet_cityscapes
        channelnet condensenet74_c4_g4 darknet_tiny densenet121 densenet40_k12_cifar10
        diaresnet20_cifar10 dicenet_wd5 dla34 dla46c dpn68 efficientnet_b0 enet_cityscapes
        erfnet_cityscapes espnetv2_wd2 fbnet_cb fdmobilenet_wd4 ghostnet
        hardnet39ds hrnet_w18_small_v1 ibn_resnet50 igcv3_wd4 inceptionv3 inceptionv4
        lednet_cityscapes linknet_cityscapes menet108_8x1_g3 mixnet_s mnasnet_small mobilenet_w1
        mobilenetv2_w1 mobilenetv3_small_w1 nasnet_4a1056 nin_cifar10 octresnet10_ad2 peleenet
        preresnet18 proxylessnas_cpu pyramidnet110_a48_cifar10 regnetx002 resattnet56
        resdropresnet20_cifar10 resnesta18 resnet18 resnext29_32x4d_cifar10 rir_cifar10 scnet50
        segnet_cityscapes selecsls42 senet16 seresnet18 shakeshakeresnet20_2x16d_cifar10
        shufflenet_g3_w1 shufflenetv2_w1 sinet_cityscapes sknet50 spnasnet squeezenet_v1_1
        sqnxt23_w1 tresnet_m unet_cityscapes vovnet27s xception xdensenet40_2_k24_bc_cifar10""",
    "torchvision": """
        alexnet convnext_tiny deeplabv3_mobilenet_v3_large efficientnet_v2_s googlenet
        inception_v3 lraspp_mobilenet_v3_large maxvit_t mnasnet0_5 mobilenet_v3_small
        regnet_y_400mf resnet18 resnet50 shufflenet_v2_x0_5 squeezenet1_1 swin_t swin_v2_t vgg11
        vit_b_32""",
    "timm": """
        botnet26t_256 cait_xxs24_224 coat_lite_tiny convit_tiny convnextv2_atto crossvit_tiny_240
        cs3darknet_focus_s cspresnet50 davit_tiny deit_tiny_distilled_patch16_224 densenetblur121d
        edgenext_xx_small efficientformer_l1 efficientnet_b0_gn efficientvit_b0 efficientvit_m0
        fasternet_t0 fastvit_t8 focalnet_tiny_srf ghostnetv2_100 gmixer_12_224 gmlp_ti16_224
        halonet26t hgnetv2_b0 hiera_tiny_224 inception_next_atto lambda_resnet26t lcnet_050
        levit_128s mambaout_femto mixer_s32_224 mobilenetv4_conv_small mobileone_s0 mobilevit_xxs
        mobilevitv2_050 mvitv2_tiny nf_regnet_b0 pit_ti_224 poolformer_s12 pvt_v2_b0 repvgg_a0
        repvit_m0_9 res2net50_14w_8s resmlp_12_224 resnest14d resnetv2_18 rexnet_100 shvit_s1
        skresnet18 starnet_s050 swiftformer_xs swin_tiny_patch4_window7_224 tiny_vit_5m_224
        tnt_s_patch16_224 twins_svt_small visformer_tiny vit_small_patch32_224
        vit_tiny_patch16_224 vit_relpos_small_patch16_224 xcit_nano_12_p16_224""",
    "transformers": """
        ALBERT BEiT BERT CLIPVision ConvNext ConvNextV2 DeiT Dinov2 DistilBERT ELECTRA FNet
        FocalNet GPT2 GPTNeoX Hiera Llama MPNet MobileNetV2 MobileViT OPT PVT PoolFormer Qwen2
        RegNet ResNet RoBERTa Segformer SiglipVision Swin Swinv2 ViT ViTMSN YOLOS""",
    "torch": "gru lstm rnn transformer transformer-encoder transformer-encoder-prenorm",
}  # fmt: skip
# Of pytorchcv; these Torch-Pruning is tried on.
PRUNED = """bn_vgg11 resnet18 preresnet18 seresnet18 resnext29_32x4d_cifar10 densenet121 dpn68
    inceptionv3 xception squeezenet_v1_1 mobilenet_w1 mobilenetv2_w1 mobilenetv3_small_w1
    shufflenet_g3_w1 shufflenetv2_w1 efficientnet_b0 regnetx002 dla34 nasnet_4a1056
    hrnet_w18_small_v1 unet_cityscapes"""
SIZES = (32, 64, 96, 128, 224, 240, 256, 299, 320, 480)  # of images, in pixels
EXACT = 1e-9  # relative difference of outputs in float64
SIMILAR = 1e-4  # in training, where batch norms of two samples make much of little


PACKAGES = {
    "pytorchcv": "pytorchcv.model_provider",
    "torchvision": "torchvision.models",
    "timm": "timm",
    "transformers": "transformers",
}


def package(source: str) -> Any:
    """Returns a package, of which all import torchvision.

    That can be imported beside a build of torch, too, which cannot load its compiled operators.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError:  # it asks for these two; no network here does
        for operator in ("nms", "qnms"):
            signature = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{operator}", signature)
    return importlib.import_module(PACKAGES[source])


def from_pytorchcv(name: str) -> nn.Module:
    """Returns a network of pytorchcv."""
    return package("pytorchcv").get_model(name)


def from_torchvision(name: str) -> nn.Module:
    """Returns a network of torchvision."""
    models = package("torchvision")
    options: dict[str, Any] = {"image_size": 64} if name.startswith("vit") else {}
    if "weights_backbone" in models.get_model_builder(name).__annotations__:
        options["weights_backbone"] = None
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = True
    return models.get_model(name, weights=None, **options)


def from_timm(name: str) -> nn.Module:
    """Returns a network of timm, for small images where it has that option."""
    timm = package("timm")
    for options in ({"img_size": 64}, {"img_size": 128}, {}):
        try:
            model = timm.create_model(name, **options).double().eval()
            run(model, torch.randn(2, 3, *2 * [options.get("img_size", 224)]).double())
            break
        except (TypeError, RuntimeError, AssertionError, ValueError, AttributeError):
            continue  # no such option, or a size that its windows do not divide
    return model


def from_transformers(name: str) -> nn.Module:
    """Returns a small network of transformers with one input and one output."""
    transformers = package("transformers")
    class_name, options = TRANSFORMERS[name]
    kind = getattr(transformers, class_name)
    model = kind(kind.config_class(**options))

    class Wrapped(nn.Module):
        def __init__(self, model: nn.Module, options: dict[str, bool]):
            super().__init__()
            self.model, self.options = model, options

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.model(x, **self.options)[0]

    is_decoder = hasattr(model.config, "use_cache") and model.can_generate()
    return Wrapped(model, {"return_dict": False} | ({"use_cache": False} if is_decoder else {}))


IMAGES = {"image_size": 32, "patch_size": 8}
SMALL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
}  # fmt: skip
TEXT = {"vocab_size": 50}
STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
SWIN = {
    "image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4],
    "window_size": 4,
}  # fmt: skip
# Name → class, and options of its configuration.
TRANSFORMERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ALBERT": ("AlbertModel", SMALL | TEXT | {"embedding_size": 16}),
    "BEiT": ("BeitForImageClassification", SMALL | IMAGES),
    "BERT": ("BertModel", SMALL | TEXT),
    "CLIPVision": ("CLIPVisionModel", SMALL | IMAGES),
    "ConvNext": ("ConvNextForImageClassification", STAGES),
    "ConvNextV2": ("ConvNextV2ForImageClassification", STAGES),
    "DeiT": ("DeiTForImageClassification", SMALL | IMAGES),
    "Dinov2": ("Dinov2ForImageClassification", SMALL | IMAGES | {"mlp_ratio": 2}),
    "DistilBERT": (
        "DistilBertModel", TEXT | {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}
    ),
    "ELECTRA": ("ElectraModel", SMALL | TEXT | {"embedding_size": 16}),
    "FNet": ("FNetModel", SMALL | TEXT),
    "FocalNet": (
        "FocalNetForImageClassification",
        {"image_size": 32, "embed_dim": 16, "depths": [1, 1], "hidden_sizes": [16, 32],
         "focal_levels": [2, 2], "focal_windows": [3, 3]},
    ),
    "GPT2": ("GPT2LMHeadModel", TEXT | {"n_embd": 32, "n_layer": 2, "n_head": 4}),
    "GPTNeoX": ("GPTNeoXForCausalLM", SMALL | TEXT),
    "Hiera": (
        "HieraForImageClassification",
        {"image_size": [64, 64], "embed_dim": 16, "depths": [1] * 4, "num_heads": [1, 2, 4, 8]},
    ),
    "Llama": ("LlamaForCausalLM", SMALL | TEXT | {"num_key_value_heads": 2}),
    "MPNet": ("MPNetModel", SMALL | TEXT),
    "MobileNetV2": ("MobileNetV2ForImageClassification", {"depth_multiplier": 0.35}),
    "MobileViT": (
        "MobileViTForImageClassification",
        {"image_size": 64, "hidden_sizes": [24, 32, 40],
         "neck_hidden_sizes": [8, 8, 16, 16, 24, 24, 32]},
    ),
    "OPT": (
        "OPTForCausalLM",
        TEXT | {"hidden_size": 32, "num_hidden_layers": 2, "ffn_dim": 64, "num_attention_heads": 4,
                "max_position_embeddings": 16, "word_embed_proj_dim": 32},
    ),
    "PVT": (
        "PvtForImageClassification",
        STAGES | {"image_size": 64, "num_attention_heads": [1, 2, 4, 4]},
    ),
    "PoolFormer": ("PoolFormerForImageClassification", STAGES),
    "Qwen2": ("Qwen2ForCausalLM", SMALL | TEXT | {"num_key_value_heads": 2}),
    "RegNet": ("RegNetForImageClassification", STAGES | {"embedding_size": 8, "groups_width": 8}),
    "ResNet": ("ResNetForImageClassification", STAGES | {"embedding_size": 8}),
    "RoBERTa": ("RobertaModel", SMALL | TEXT),
    "Segformer": (
        "SegformerForImageClassification", STAGES | {"num_attention_heads": [1, 2, 4, 4]}
    ),
    "SiglipVision": ("SiglipVisionModel", SMALL | IMAGES),
    "Swin": ("SwinForImageClassification", SWIN),
    "Swinv2": ("Swinv2ForImageClassification", SWIN),
    "ViT": ("ViTForImageClassification", SMALL | IMAGES),
    "ViTMSN": ("ViTMSNForImageClassification", SMALL | IMAGES),
    "YOLOS": ("YolosModel", SMALL | {"patch_size": 8, "image_size": [32, 32]}),
}  # fmt: skip


class Sequences(nn.Module):
    """Layers of torch.nn that read sequences, between two linear ones: `[batch, 6, 8]`."""

    def __init__(self, name: str):
        super().__init__()
        self.before = nn.Linear(8, 32)
        if name == "transformer":
            self.layer: nn.Module = nn.Transformer(32, 4, 2, 2, 64, batch_first=True)
        elif name.startswith("transformer"):
            one = nn.TransformerEncoderLayer(
                32, 4, 64, batch_first=True, norm_first=name.endswith("prenorm")
            )
            self.layer = nn.TransformerEncoder(one, 2, enable_nested_tensor=False)
        else:
            kind = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[name]
            self.layer = kind(32, 24, 2, batch_first=True, bidirectional=True)
        self.name = name
        self.after = nn.Linear(48 if isinstance(self.layer, nn.RNNBase) else 32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.before(x)
        if self.name in ("lstm", "gru", "rnn"):
            return self.after(self.layer(h)[0])
        return self.after(self.layer(h, h) if self.name == "transformer" else self.layer(h))


SOURCES: dict[str, Callable[[str], nn.Module]] = {
    "pytorchcv": from_pytorchcv,
    "torchvision": from_torchvision,
    "timm": from_timm,
    "transformers": from_transformers,
    "torch": Sequences,
}


def network(full_name: str) -> tuple[nn.Module, torch.Tensor]:
    """Returns a network, in float64 and evaluation mode, and two samples of its input."""
    torch.manual_seed(0)
    source, name = full_name.split("/")
    model = SOURCES[source](name).double().eval()
    for module in model.modules():
        for buffer_name, buffer in module.named_buffers(recurse=False):
            if buffer_name == "running_var":
                nn.init.uniform_(buffer, 0.5, 1.5)
            elif buffer_name == "running_mean":
                nn.init.normal_(buffer, std=0.1)
    for parameter in model.parameters():  # none starts at 0 or 1, where mistakes do not show
        if parameter.numel() > 1 and parameter.detach().std() < 1e-3:
            parameter.data += 0.1 * torch.randn_like(parameter)
        parameter.requires_grad = False
    if source == "torch":
        return model, torch.randn(2, 6, 8, dtype=torch.float64)
    if any(isinstance(module, nn.Embedding) for module in model.modules()) and not any(
        isinstance(module, nn.Conv2d) for module in model.modules()
    ):
        return model, torch.randint(3, 50, (2, 8))
    for size in SIZES:
        x = torch.randn(2, 3, size, size, dtype=torch.float64)
        try:
            run(model.train(), x)
            run(model.eval(), x)
            return model, x
        except Exception as error:  # too small for it, or not the one that it asks for
            reason = error
    raise reason


def run(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Returns the outputs of a network."""

    def tensors(y: Any) -> Iterator[torch.Tensor]:
        if isinstance(y, torch.Tensor):
            yield y
        elif isinstance(y, dict | list | tuple):
            for part in y.values() if isinstance(y, dict) else y:
                yield from tensors(part)

    with torch.no_grad():
        return list(tensors(model(x)))


def scaled(model: nn.Module, x: torch.Tensor, multiplier: float) -> tuple[nn.Module, Any]:
    """Returns a network with all free groups scaled and weights kept, and what was done."""
    request = {"name": "output_only", "channel_multiplier": multiplier}
    pass_config = {"by": "type", "default": {"config": request}}
    return channel_multiplier_transform_pass(model, pass_config, example_input=x, weights="keep")


def n_parameters(model: nn.Module) -> int:
    """Returns the number of parameters."""
    return sum(p.numel() for p in model.parameters())


@dataclasses.dataclass
class Row:
    """What became of one network.

    Attributes:
        kind: `exact`, `inexact`, `unchanged`, `refused` or `WRONG`.
        answer: The same in words.
        groups: Free channel groups, of all.
        growth: Parameters of the widened network, as a multiple.
        flops: FLOPs of matrix products, of PyTorch's counter.
        training: How far it is from the given one in training, too, where that can be compared.
        seconds: CPU time of the pass.
        unknown: What labkit does not know, so that channels stay as they are.
    """

    kind: str
    answer: str
    groups: str = ""
    growth: str = ""
    flops: str = ""
    training: str = ""
    seconds: str = ""
    unknown: Sequence[str] = ()


def widened(name: str) -> Row:
    """Widens a network and says how far it is from the given one."""
    model, x = network(name)
    before = run(model, x)
    start = time.process_time()
    try:
        new, info = scaled(model, x, 1.5)
    except LabkitError as error:
        return Row("refused", f"refused: {brief(str(error))}")
    seconds = time.process_time() - start
    growth = n_parameters(new) / n_parameters(model)
    after = run(new, x)
    difference = apart(after, before)
    channels = find_channels(model, x)  # a second time, as in a search
    if not channels.free:
        kind, answer = "unchanged", "unchanged: no width can change"
    elif (difference < EXACT) != (not info.inexact):
        kind, answer = "WRONG", f"WRONG: {difference:.0e}, but: {info.inexact}"
    elif info.inexact:
        kind, answer = "inexact", f"not exactly: {brief(info.inexact[0])}"
    else:
        kind, answer = "exact", f"exactly: {difference:.0e}"
    in_training, again, new_in_training = (trained(each, x) for each in (model, model, new))
    training = "random"  # what is drawn is drawn for other widths
    if apart(in_training, again) < EXACT:
        difference = apart(new_in_training, in_training)
        training = "equal" if difference < SIMILAR else f"{difference:.0e}"
        if kind == "exact" and difference >= SIMILAR:
            kind, answer = "WRONG", f"WRONG in training: {difference:.0e}"
    model.eval()
    unknown = {
        match[1]
        for g in channels.groups
        if (match := re.search(r"\((?:[\w.]*\.)?(\w+)\) does", g.fixed or ""))
    }
    return Row(
        kind, answer, f"{len(channels.free)} / {len(channels.groups)}", f"{growth:.2f}",
        share_of_flops(model, channels, x), training, f"{seconds:.1f}", sorted(unknown),
    )  # fmt: skip


def apart(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    """Returns the largest relative difference of outputs."""
    return max(float((x - y).norm() / y.norm()) for x, y in zip(a, b, strict=True))


def trained(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Returns the outputs of a network in training, without dropout."""
    for module in model.train().modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        elif isinstance(module, nn.MultiheadAttention | nn.RNNBase):
            module.dropout = 0.0
    return run(model, x)


def brief(reason: str) -> str:
    """Returns a reason without the name of the node: `'norm1' (LayerNorm) …` → `LayerNorm …`."""
    return re.sub(r"'[^']*' \((?:[\w.]*\.)?(\w+)\)", r"\1", reason).replace("|", "\\|")


def share_of_flops(model: nn.Module, channels: Any, x: torch.Tensor) -> str:
    """Says how many of the FLOPs that PyTorch counts for one sample labkit counts."""
    products = {
        node.name
        for node in channels.traced.graph.nodes
        if (operator := operator_of(node)) is not None and operator.matrix_product
    }
    ours = sum(layer.flops for layer in cost_of(channels).layers if layer.name in products)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run(model, x[:1])
    theirs = counter.get_total_flops() / 2  # it counts a multiply-accumulate as 2
    return "equal" if ours == theirs else f"{ours / theirs:.3f}"


def halved(name: str, halve: Callable[[nn.Module, torch.Tensor], nn.Module]) -> str:
    """Says which share of the parameters is left in a network that still runs."""
    model, x = network(name)
    shapes, size = [y.shape for y in run(model, x)], n_parameters(model)
    after = run(new := halve(model, x), x)
    works = shapes == [y.shape for y in after] and all(y.isfinite().all() for y in after)
    return f"yes: {n_parameters(new) / size:.0%}" if works else "NO: it does not run any more"


def labkit_halves(name: str) -> str:
    """Says what labkit's halved network is."""
    return halved(name, lambda model, x: scaled(model, x, 0.5)[0])


def torch_pruning_halves(name: str) -> str:
    """Says what Torch-Pruning's network is with all layers halved but those that write classes."""
    import torch_pruning

    def halve(model: nn.Module, x: torch.Tensor) -> nn.Module:
        sizes = (
            (m, getattr(m, "out_features", getattr(m, "out_channels", 0))) for m in model.modules()
        )
        classifiers = [module for module, size in sizes if size == model.num_classes]
        model.requires_grad_()  # it follows the gradients
        importance = torch_pruning.importance.MagnitudeImportance(p=2)
        torch_pruning.pruner.MagnitudePruner(
            model, x, importance=importance, pruning_ratio=0.5, ignored_layers=classifiers
        ).step()
        return model

    return halved(name, halve)


def measure(function: Callable[[str], Any], name: str, answer: Connection) -> None:
    """Sends what a function says of a network."""
    warnings.simplefilter("ignore")
    torch.backends.mha.set_fastpath_enabled(False)  # PyTorch's counter does not know it
    try:
        answer.send(function(name))
    except Exception as error:  # whatever it fails with is the result
        answer.send(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")


def isolated(function: Callable[[str], Any], name: str, time_limit: float) -> Any:
    """Returns what a function says of a network, in a process of its own, or how that failed."""
    context = multiprocessing.get_context("fork")  # this process imports, and computes nothing
    answer, sender = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(function, name, sender))
    process.start()
    sender.close()
    try:
        return answer.recv() if answer.poll(time_limit) else f"hangs for {time_limit:g} s"
    except EOFError:
        return "the process died"
    finally:
        process.kill()
        process.join()


def print_widened(names: Sequence[str], time_limit: float) -> None:
    """Prints the table of widened networks, and what it comes to."""
    print("| network | widened by 1.5 | groups free | parameters × | FLOPs | training | seconds |")
    print("|:--|:--|--:|--:|--:|--:|--:|")
    kinds: Counter[str] = Counter()
    training: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    for name in names:
        row = isolated(widened, name, time_limit)
        row = Row("WRONG", f"WRONG: {row}") if isinstance(row, str) else row
        kinds[row.kind] += 1
        training[f"{row.kind}, {row.training or 'not run'}"] += 1
        unknown.update(row.unknown)
        cells = (
            name, row.answer, row.groups, row.growth, row.flops, row.training, row.seconds
        )  # fmt: skip
        print(f"| {' | '.join(cells)} |", flush=True)
    print("\n" + ", ".join(f"{kind}: {number}" for kind, number in kinds.most_common()) + "\n")
    print(f"In training: {dict(training)}\n")
    print("| not known | networks that it costs widths |")
    print("|:--|--:|")
    for what, number in unknown.most_common():
        print(f"| `{what}` | {number} |")


def print_halved(names: Sequence[str], time_limit: float) -> None:
    """Prints what each tool makes of networks with half the channels."""
    print("| network | labkit | Torch-Pruning |")
    print("|:--|:--|:--|")
    for name in names:
        cells = [isolated(f, name, time_limit) for f in (labkit_halves, torch_pruning_halves)]
        print(f"| {' | '.join([name, *cells])} |", flush=True)


def main() -> None:
    """Prints the table row by row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="PACKAGE/NETWORK; by default all")
    parser.add_argument("--pruning", action="store_true", help="compare with Torch-Pruning")
    parser.add_argument("--time-limit", type=float, default=300, help="seconds a cell")
    arguments = parser.parse_args()
    everything = [f"{source}/{n}" for source, text in NETWORKS.items() for n in text.split()]
    some = [f"pytorchcv/{name}" for name in PRUNED.split()]
    names = arguments.names or (some if arguments.pruning else everything)
    for source in PACKAGES.keys() & {name.split("/")[0] for name in names}:
        package(source)
    (print_halved if arguments.pruning else print_widened)(names, arguments.time_limit)


if __name__ == "__main__":
    main()
