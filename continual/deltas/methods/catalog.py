"""The catalogue of methods; a new one is a file with settings and edits, and one line here.

Another package registers one with an entry point of the group `continual.methods` that names its settings class.
"""

from continual.deltas.method import METHODS
from continual.deltas.methods.ada_lora import AdaLoRA
from continual.deltas.methods.adapter import Adapter, ParallelAdapter, PfeifferAdapter
from continual.deltas.methods.bitfit import BitFit
from continual.deltas.methods.boft import BOFT
from continual.deltas.methods.composite import AdapterBitFit, MixAndMatch, ParallelComposition, SequentialComposition
from continual.deltas.methods.diff_pruning import DiffPruning
from continual.deltas.methods.dora import DoRA
from continual.deltas.methods.fourier_ft import FourierFT
from continual.deltas.methods.full import Full, LastLayer, Probe, Selective
from continual.deltas.methods.ia3 import IA3
from continual.deltas.methods.intrinsic import Intrinsic
from continual.deltas.methods.layer_norm import LayerNorm
from continual.deltas.methods.loha import LoHa
from continual.deltas.methods.lokr import LoKr
from continual.deltas.methods.lora import LoRA
from continual.deltas.methods.lora_xs import LoRAXS
from continual.deltas.methods.masking import BinaryMasking
from continual.deltas.methods.multi_head_adapter import MultiHeadAdapter
from continual.deltas.methods.oft import OFT
from continual.deltas.methods.prefix import Prefix
from continual.deltas.methods.prompt import Prompt
from continual.deltas.methods.reft import ReFT
from continual.deltas.methods.subspace import Subspace
from continual.deltas.methods.tiny_lora import TinyLoRA
from continual.deltas.methods.vera import VeRA

METHODS.register(
    {
        "adapter": Adapter,
        "adapter_pfeiffer": PfeifferAdapter,
        "parallel_adapter": ParallelAdapter,
        "multi_head_adapter": MultiHeadAdapter,
        "prefix": Prefix,
        "prompt": Prompt,
        "ia3": IA3,
        "layer_norm": LayerNorm,
        "bitfit": BitFit,
        "last_layer": LastLayer,
        "selective": Selective,
        "diff_pruning": DiffPruning,
        "masking": BinaryMasking,
        "lora": LoRA,
        "dora": DoRA,
        "ada_lora": AdaLoRA,
        "vera": VeRA,
        "lora_xs": LoRAXS,
        "tiny_lora": TinyLoRA,
        "loha": LoHa,
        "lokr": LoKr,
        "oft": OFT,
        "boft": BOFT,
        "fourier_ft": FourierFT,
        "reft": ReFT,
        "intrinsic": Intrinsic,
        "subspace": Subspace,
        "union": ParallelComposition,
        "sequential": SequentialComposition,
        "mam": MixAndMatch,
        "adapter_bitfit": AdapterBitFit,
        "full": Full,
        "probe": Probe,
    }
)
