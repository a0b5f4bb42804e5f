"""Toy networks of tokens, heads, norms over channels, gates and other layers that are not plain convolutions."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LayerNorm2d(nn.LayerNorm):
    """torchvision's: over the channels of an image."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNextBlock(nn.Module):
    """Depthwise, norm, two linear layers, layer scale, sum."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm, self.grow, self.shrink = (
            nn.LayerNorm(channels),
            nn.Linear(channels, hidden),
            nn.Linear(hidden, channels),
        )
        self.scale = nn.Parameter(torch.full((channels, 1, 1), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.shrink(F.gelu(self.grow(self.norm(self.depthwise(x).permute(0, 2, 3, 1)))))
        return x + self.scale * y.permute(0, 3, 1, 2)


class ConvNext(nn.Module):
    """Both forms of layer norm, layer scale, and a stage of blocks."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 2, stride=2), LayerNorm2d(8)
        self.stage = nn.Sequential(ConvNextBlock(8, 12), ConvNextBlock(8, 10), ConvNextBlock(8, 14))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stage(self.norm(self.stem(x))).mean((2, 3)))


class Attention(nn.Module):
    """Joint projection, a number of heads, the usual reshapes; `flat` merges the heads into what was read."""

    def __init__(self, channels: int, heads: int, *, flat: bool = False, fused: bool = True):
        super().__init__()
        self.num_heads, self.head_dim, self.flat, self.fused = heads, channels // heads, flat, fused
        self.qkv, self.proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, channels = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = (q @ k.transpose(-2, -1) * self.head_dim**-0.5).softmax(-1) @ v
        y = y.transpose(1, 2)
        return self.proj(y.reshape(batch, tokens, channels) if self.flat else y.flatten(2))


class GainsOfHeads(nn.Module):
    """Queries and keys are normalised inside every head, whose gains have two dimensions, as vit-pytorch does."""

    def __init__(self, channels: int, heads: int, *, attends: bool = True):
        super().__init__()
        self.heads, self.attends = heads, attends
        self.qkv, self.proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.q_gain, self.k_gain = (nn.Parameter(torch.rand(heads, 1, channels // heads) + 0.5) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = (part.view(batch, tokens, self.heads, -1).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        if not self.attends:
            y = q * self.q_gain + k * self.k_gain + v
        else:
            q, k = F.normalize(q, dim=-1) * self.q_gain, F.normalize(k, dim=-1) * self.k_gain
            y = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.proj(y.transpose(1, 2).flatten(2))


class SeparateAttention(nn.Module):
    """A projection each for query, key and value; the heads' number is kept, a table adds a value per head."""

    def __init__(self, channels: int, heads: int, tokens: int):
        super().__init__()
        self.num_heads = heads
        self.query, self.key, self.value = (nn.Linear(channels, channels) for _ in range(3))
        self.out = nn.Linear(channels, channels)
        self.table = nn.Parameter(0.3 * torch.randn(9, heads))
        self.register_buffer("index", torch.arange(tokens * tokens).view(tokens, tokens) % 9)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            p(x).view(*x.shape[:2], self.num_heads, -1).transpose(1, 2) for p in (self.query, self.key, self.value)
        )
        scores = torch.matmul(q, k.transpose(-1, -2)) + self.table[self.index].permute(2, 0, 1).unsqueeze(0)
        return self.out(torch.matmul(scores.softmax(-1), v).transpose(1, 2).flatten(2))


class EinsumAttention(nn.Module):
    """One head, written with einsum: what is summed over stays, the values are cut."""

    def __init__(self, channels: int):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(channels, 8) for _ in range(3))
        self.out = nn.Linear(8, channels)

    def forward(self, x: Tensor) -> Tensor:
        scores = torch.einsum("bnc,bmc->bnm", self.query(x), self.key(x)).softmax(-1)
        return self.out(torch.einsum("bnm,bmc->bnc", scores, self.value(x)))


class TorchAttention(nn.Module):
    """torch's own module."""

    def __init__(self, channels: int, heads: int, **options):
        super().__init__()
        self.inner = nn.MultiheadAttention(channels, heads, batch_first=True, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x, x, need_weights=False)[0]


class TokenBlock(nn.Module):
    """Norm, attention, sum; norm, two linear layers, sum."""

    def __init__(self, attention: nn.Module, channels: int, hidden: int):
        super().__init__()
        self.first, self.attention, self.second = nn.LayerNorm(channels), attention, nn.LayerNorm(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, channels))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.first(x))
        return x + self.mlp(self.second(x))


class Tokens(nn.Module):
    """Patches, class token, position embedding, blocks, norm, classifier of the class token: 12 channels."""

    def __init__(self, *attention: nn.Module):
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 4, stride=4)
        self.token, self.position = nn.Parameter(torch.randn(1, 1, 12)), nn.Parameter(torch.randn(1, 5, 12))
        self.blocks = nn.ModuleList([TokenBlock(item, 12, 10) for item in attention])
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class EmbeddedPositions(Tokens):
    """Positions from an `nn.Embedding`, which is asked for those of a buffer, as in CLIP."""

    def __init__(self):
        super().__init__(Attention(12, 3))
        del self.position
        self.position = nn.Embedding(6, 12)
        self.register_buffer("places", torch.arange(6)[None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        x = x + self.position(self.places[:, : x.shape[1]])
        return self.head(self.norm(self.blocks[0](x))[:, 0])


class Pooled(Tokens):
    """Tokens attend to others, and a learned query to all of them, by torch's own attention, as in SigLIP."""

    def __init__(self):
        super().__init__(Attention(12, 3))
        self.across = nn.MultiheadAttention(12, 3, batch_first=True)
        self.query, self.pooling = nn.Parameter(torch.randn(1, 3, 12)), nn.MultiheadAttention(12, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        x = x + self.across(x, x[:, 1:], x[:, 1:])[0]
        x = self.norm(self.blocks[0](x)).transpose(0, 1)
        query = self.query.repeat(x.shape[1], 1, 1).transpose(0, 1)
        return self.head((query + self.pooling(query, x, x, need_weights=False)[0]).mean(0))


class EncoderLayers(nn.Module):
    """torch's transformer layer, which has a fast path of its own."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 4, stride=4)
        self.layer = nn.TransformerEncoderLayer(12, 3, 10, dropout=0.0, batch_first=True)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


class Mixer(nn.Module):
    """A linear layer over tokens, which leaves channels alone, and one over channels."""

    def __init__(self):
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, 12, 2, stride=2), nn.LayerNorm(12)
        self.over_tokens = nn.Sequential(nn.Linear(16, 6), nn.GELU(), nn.Linear(6, 16))
        self.over_channels = nn.Sequential(nn.Linear(12, 10), nn.GELU(), nn.Linear(10, 12))
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.over_tokens(self.norm(x).transpose(1, 2)).transpose(1, 2)
        return self.head((x + self.over_channels(x)).mean(1))


class ConvolvedMixer(Mixer):
    """The same with pointwise convolutions, for which tokens are the channels."""

    def __init__(self):
        super().__init__()
        self.over_tokens = nn.Sequential(nn.Conv1d(16, 6, 1), nn.GELU(), nn.Conv1d(6, 16, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.over_tokens(self.norm(x))
        return self.head((x + self.over_channels(x)).mean(1))


class GroupNorms(nn.Module):
    """Group norms with one, two and as many groups as channels, and an instance norm."""

    def __init__(self):
        super().__init__()
        self.one, self.one_norm = nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(1, 8)
        self.two, self.two_norm = nn.Conv2d(8, 12, 3, padding=1), nn.GroupNorm(2, 12)
        self.all, self.all_norm = nn.Conv2d(12, 6, 3, padding=1), nn.GroupNorm(6, 6)
        self.last, self.last_norm = nn.Conv2d(6, 10, 3, padding=1), nn.InstanceNorm2d(10, affine=True)
        self.head = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        for layer, norm in ((self.one, self.one_norm), (self.two, self.two_norm), (self.all, self.all_norm)):
            x = norm(layer(x)).relu()
        return self.head(self.last_norm(self.last(x)).relu().mean((2, 3)))


class RmsNormed(nn.Module):
    """A root-mean-square norm, and a slope per channel."""

    def __init__(self):
        super().__init__()
        self.conv, self.slope, self.norm = nn.Conv2d(3, 8, 3), nn.PReLU(8), nn.RMSNorm(8)
        self.hidden, self.head = nn.Linear(8, 10), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(self.norm(self.slope(self.conv(x)).mean((2, 3)))).relu())


class Gated(nn.Module):
    """Half of the channels, sigmoid, times the other half: by chunk, by `glu` and by a slice."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 16, 3), nn.Conv2d(8, 12, 3), nn.Linear(6, 8)
        self.keep, self.head = 4, nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.first(x).chunk(2, 1)
        x = F.glu(self.second(one * other.sigmoid()), 1).mean((2, 3))
        x = self.third(x)
        return self.head(x[:, : self.keep] * x[:, self.keep :].sigmoid())


class Split(nn.Module):
    """Channels split in uneven parts, by numbers the module keeps in a list."""

    def __init__(self):
        super().__init__()
        self.stem, self.splits = nn.Conv2d(3, 12, 3, padding=1), [7, 5]
        self.parts = nn.ModuleList([nn.Conv2d(7, 4, 3, padding=1), nn.Conv2d(5, 6, 1)])
        self.last, self.head = nn.Conv2d(10, 8, 3), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        parts = zip(self.parts, self.stem(x).split(self.splits, 1), strict=True)
        return self.head(self.last(torch.cat([layer(part) for layer, part in parts], 1).relu()).mean((2, 3)))


class OneAndThree(nn.Module):
    """Convolutions over one and three dimensions, and transposed ones, plain and depthwise."""

    def __init__(self):
        super().__init__()
        self.volume, self.volume_norm = nn.Conv3d(3, 8, (1, 3, 3), padding=(0, 1, 1)), nn.BatchNorm3d(8)
        self.up, self.up_norm = nn.ConvTranspose2d(8, 10, 2, stride=2), nn.BatchNorm2d(10)
        self.each = nn.ConvTranspose2d(10, 10, 2, stride=2, groups=10)
        self.line, self.line_norm, self.head = nn.Conv1d(10, 6, 3), nn.BatchNorm1d(6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.volume_norm(self.volume(x.unsqueeze(2))).squeeze(2).relu()
        x = self.each(self.up_norm(self.up(x)).relu())
        return self.head(self.line_norm(self.line(x.mean(3))).relu().mean(2))


class Interleaved(nn.Module):
    """Two branches stacked and read as one, channels in turn."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.last = nn.Conv2d(3, 6, 3), nn.Conv2d(3, 6, 3), nn.Conv2d(12, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.stack([self.left(x), self.right(x)], 2).flatten(1, 2)
        return self.head(self.last(x.relu()).mean((2, 3)))


class WithWeights(nn.Module):
    """Attention weights are asked for, and masked."""

    def __init__(self):
        super().__init__()
        self.patches, self.inner = nn.Conv2d(3, 12, 4, stride=4), nn.MultiheadAttention(12, 3)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).permute(2, 0, 1)
        mask = torch.ones(4, 4, dtype=torch.bool).triu(1)
        y, weights = self.inner(x, x, x, attn_mask=mask)
        return self.head(y.mean(0)) * weights.amax()


class Across(nn.Module):
    """Queries ask tokens."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.num_heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(channels, channels) for _ in range(4))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        q, k, v = (
            p(z).view(*z.shape[:2], self.num_heads, -1).transpose(1, 2)
            for p, z in ((self.query, x), (self.key, y), (self.value, y))
        )
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Decoder(nn.Module):
    """As DETR's: queries begin with zeros, and what tells them apart is the weight of an embedding, read as it is."""

    def __init__(self):
        super().__init__()
        self.patches, self.queries = nn.Conv2d(3, 12, 4, stride=4), nn.Embedding(6, 10)
        self.among, self.among_norm = Across(10, 5), nn.LayerNorm(10)
        self.first, self.second = nn.Linear(12, 10), nn.Linear(10, 10)
        self.across, self.norm = Across(10, 2), nn.LayerNorm(10)
        self.head = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.second(self.first(self.patches(x).flatten(2).transpose(1, 2)).relu())
        places = self.queries.weight.unsqueeze(0).repeat(len(x), 1, 1)
        found = torch.zeros_like(places)
        asked = found + places
        found = self.among_norm(found + self.among(asked, asked))
        found = self.norm(found + self.across(found + places, tokens))
        return self.head(found).mean(1)


class Turned(nn.Module):
    """Rotary positions, made in forward, for all tokens but the first ones, of which there are none."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.num_heads, self.scale = heads, nn.Parameter(torch.tensor(1.5))
        self.query, self.key, self.value, self.out = (nn.Linear(channels, channels) for _ in range(4))

    def turned(self, x: Tensor, alone: int) -> Tensor:
        angles = self.scale * torch.arange(x.shape[2] - alone)[:, None] / torch.arange(1, 1 + x.shape[3])
        left, right = x.chunk(2, -1)
        turned = x[:, :, alone:] * angles.cos() + torch.cat([-right, left], -1)[:, :, alone:] * angles.sin()
        return torch.cat([x[:, :, :alone], turned], 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            p(x).view(*x.shape[:2], self.num_heads, -1).transpose(1, 2) for p in (self.query, self.key, self.value)
        )
        y = F.scaled_dot_product_attention(self.turned(q, 0), self.turned(k, 0), v)
        return self.out(y.transpose(1, 2).flatten(2))


class Table(nn.Module):
    """A value per pair of tokens and head, given by a method, in a shape that the module keeps."""

    def __init__(self, tokens: int, heads: int):
        super().__init__()
        self.shape = (tokens, tokens, heads)
        self.table = nn.Parameter(0.3 * torch.randn(9, heads))
        self.register_buffer("index", torch.arange(tokens * tokens) % 9)

    def given(self) -> Tensor:
        return self.table[self.index].view(self.shape).permute(2, 0, 1)


class Asks(nn.Module):
    """Attention that asks a table by a method of it."""

    def __init__(self, channels: int, heads: int, tokens: int):
        super().__init__()
        self.num_heads, self.table = heads, Table(tokens, heads)
        self.qkv, self.proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=self.table.given())
        return self.proj(y.transpose(1, 2).flatten(2))


class KeepsBiases(nn.Module):
    """Attention with a bias per pair of tokens, which evaluation reads from a table that `train` makes and forgets.

    As the authors' code of LeViT, EfficientFormer and TinyViT does; it cannot evaluate without the table.
    """

    def __init__(self, channels: int, heads: int, tokens: int):
        super().__init__()
        self.num_heads = heads
        self.table = nn.Parameter(torch.randn(heads, 9))
        self.register_buffer("index", (torch.arange(tokens * tokens) % 9).view(tokens, tokens))
        self.qkv, self.proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    @torch.no_grad()
    def train(self, mode: bool = True):
        super().train(mode)
        if mode and hasattr(self, "ab"):
            del self.ab
        else:
            self.ab = self.table[:, self.index]
        return self

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.table[:, self.index] if self.training else self.ab
        y = (q @ k.transpose(-2, -1) + bias).softmax(-1) @ v
        return self.proj(y.transpose(1, 2).flatten(2))


class JoinedBias(Attention):
    """Biases of queries, keys and values stored apart, those of keys zero, as in BEiT."""

    def __init__(self, channels: int, heads: int):
        super().__init__(channels, heads)
        self.qkv.bias = None
        self.query, self.value = (nn.Parameter(0.3 * torch.randn(channels)) for _ in range(2))
        self.register_buffer("key", torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        qkv = F.linear(x, self.qkv.weight, torch.cat([self.query, self.key, self.value]))
        q, k, v = qkv.view(*x.shape[:2], 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Named(nn.Module):
    """Splits the last dimension by lengths that have names, from which it makes more, as `Rearrange` of einops."""

    def __init__(self, **lengths: int):
        super().__init__()
        self.lengths, self.made = lengths, tuple(lengths.items())

    def __getstate__(self):
        return {"lengths": self.lengths}

    def __setstate__(self, state: dict):
        self.__init__(**state["lengths"])

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (*(length for _, length in self.made), -1))


class NamedLengths(nn.Module):
    """Heads split off by a module of their own."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.qkv, self.split, self.proj = (
            nn.Linear(channels, 3 * channels),
            Named(qkv=3, heads=heads),
            nn.Linear(channels, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(self.qkv(x)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Lent(nn.Module):
    """A block that is lent a layer which all blocks share, as in CoaT."""

    def __init__(self, shared: nn.Module, channels: int):
        super().__init__()
        self.shared, self.layer = shared, nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(self.shared(x)).relu()


class Lends(nn.Module):
    """Blocks that share a depthwise convolution."""

    def __init__(self):
        super().__init__()
        self.stem, self.shared = nn.Conv2d(3, 10, 4, stride=4), nn.Conv2d(10, 10, 3, padding=1, groups=10)
        self.blocks, self.head = nn.Sequential(Lent(self.shared, 10), Lent(self.shared, 10)), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Scanned(nn.Module):
    """A selective scan as Mamba has it, in plain torch: what is written into the states and read from them stays."""

    def __init__(self, states: int = 3):
        super().__init__()
        self.inner, self.states, self.stem, self.into = 10, states, nn.Conv2d(3, 6, 4, stride=4), nn.Linear(6, 20)
        self.conv, self.steps = nn.Conv1d(10, 10, 3, groups=10, padding=2), nn.Linear(10, 10)
        self.parts, self.out, self.head = nn.Linear(10, 2 * states), nn.Linear(10, 6), nn.Linear(6, 5)
        self.decay, self.skip = nn.Parameter(torch.rand(10, states)), nn.Parameter(torch.rand(10))

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.stem(image).flatten(2).transpose(1, 2)
        x, gate = self.into(tokens).split([self.inner, self.inner], -1)
        x = F.silu(self.conv(x.transpose(1, 2))[..., : x.shape[1]]).transpose(1, 2)
        step, (write, read) = F.softplus(self.steps(x)), self.parts(x).split([self.states, self.states], -1)
        kept = torch.exp(torch.einsum("bld,dn->bldn", step, -torch.exp(self.decay)))
        added = torch.einsum("bld,bln,bld->bldn", step, write, x)
        state, found = torch.zeros(len(x), self.inner, self.states, dtype=x.dtype), []
        for place in range(x.shape[1]):
            state = kept[:, place] * state + added[:, place]
            found.append(torch.einsum("bdn,bn->bd", state, read[:, place]))
        x = (torch.stack(found, 1) + x * self.skip) * F.silu(gate)
        return self.head((tokens + self.out(x)).mean(1))


class BetweenChannels(nn.Module):
    """Attention of one head between channels, as in Restormer: those that ask can be cut, those that answer stay."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 6, 4, stride=2), nn.Linear(6, 5)
        self.asks, self.answers, self.gives, self.out = (
            nn.Conv2d(*sizes, 1) for sizes in ((6, 8), (6, 7), (6, 7), (8, 6))
        )

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        query, key, value = (layer(x).flatten(2) for layer in (self.asks, self.answers, self.gives))
        mixed = (query @ key.transpose(1, 2)).softmax(-1) @ value
        return self.head((x + self.out(mixed.unflatten(2, x.shape[2:]))).mean((2, 3)))


class Matrix(nn.Module):
    """A product with a matrix that the module stores, written in one of several ways."""

    def __init__(self, inputs: int, outputs: int, how: str):
        super().__init__()
        shape = (outputs, inputs) if how in ("linear", "transposed") else (inputs, outputs)
        self.matrix, self.bias = nn.Parameter(torch.randn(shape) / inputs**0.5), nn.Parameter(torch.randn(outputs))
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "linear":
            return F.linear(x, self.matrix, self.bias)
        if self.how == "transposed":
            return x @ self.matrix.t() + self.bias
        if self.how == "einsum":
            return torch.einsum("bnc,cd->bnd", x, self.matrix) + self.bias
        if self.how == "addmm":
            return torch.addmm(self.bias, x.flatten(0, 1), self.matrix).view(*x.shape[:2], -1)
        return x @ self.matrix + self.bias


class Matrices(nn.Module):
    """Layers read by such products, whose own outputs stay; one at the end, of the model itself, as in CLIP."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 4, stride=4)
        self.matrices = nn.ModuleList(Matrix(12, 7, how) for how in ("linear", "transposed", "einsum", "addmm", "@"))
        self.layers = nn.ModuleList(nn.Linear(7, 12) for _ in range(5))
        self.norm, self.proj = nn.LayerNorm(12), nn.Parameter(torch.randn(12, 5) / 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        for matrix, layer in zip(self.matrices, self.layers, strict=True):
            x = layer(matrix(x).relu()).relu()
        return self.norm(x.mean(1)) @ self.proj


class Cascaded(nn.Module):
    """One number tells two layers apart into parts, and one of the parts is a width of its own."""

    def __init__(self):
        super().__init__()
        self.key_dim, self.value_dim = 4, 6
        self.one, self.two = nn.Conv2d(10, 10, 1), nn.Conv2d(6, 10, 1)
        self.stem = nn.Conv2d(3, 10, 4, stride=4)
        self.proj, self.head = nn.Conv2d(12, 10, 1), nn.Linear(10, 5)

    def attended(self, made: Tensor) -> Tensor:
        key, value = made.split([self.key_dim, self.value_dim], 1)
        key = key.flatten(2)
        return (value.flatten(2) @ (key.transpose(1, 2) @ key).softmax(-1)).view_as(value)

    def forward(self, x: Tensor) -> Tensor:
        first = self.attended(self.one(self.stem(x)))
        return self.head(self.proj(torch.cat([first, self.attended(self.two(first))], 1).relu()).mean((2, 3)))


class Reduced(nn.Module):
    """As PVT's attention: keys and values come from fewer places, which get the channels that were read, by number."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.across, self.reduce = Across(channels, heads), nn.Conv2d(channels, channels, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, channels = x.shape
        side = int(tokens**0.5)
        image = x.transpose(1, 2).reshape(batch, channels, side, side)
        return self.across(x, self.reduce(image).reshape(batch, channels, -1).transpose(1, 2))


class OneHeadReduced(nn.Module):
    """As SegFormer's first stage: one head, whose size is a number, and reduced places that echo what was read."""

    def __init__(self, checks: bool):
        super().__init__()
        self.head_dim, self.channels = 12, 12 if checks else None
        self.stem, self.reduce = nn.Conv2d(3, 12, 2, stride=2), nn.Conv2d(12, 12, 2, stride=2)
        self.q, self.k, self.v, self.proj = (nn.Linear(12, 12) for _ in range(4))
        self.head = nn.Linear(12, 5)

    def attended(self, x: Tensor) -> Tensor:
        batch, tokens, channels = x.shape
        if self.channels not in (None, channels):
            raise ValueError("made for other channels")
        side = int(tokens**0.5)
        reduced = self.reduce(x.transpose(1, 2).reshape(batch, channels, side, side))
        reduced = reduced.reshape(batch, channels, -1).transpose(1, 2)
        q, k, v = (
            layer(given).view(batch, given.shape[1], -1, self.head_dim).transpose(1, 2)
            for layer, given in ((self.q, x), (self.k, reduced), (self.v, reduced))
        )
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, -1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        return self.head((x + self.attended(x)).mean(1))


class Pyramid(nn.Module):
    """Two stages of reduced attention."""

    def __init__(self):
        super().__init__()
        self.stem, self.first, self.norm = nn.Conv2d(3, 12, 2, stride=2), Reduced(12, 4), nn.LayerNorm(12)
        self.grow, self.second, self.head = nn.Linear(12, 10), Reduced(10, 2), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        x = self.grow(self.norm(x + self.first(x)))
        return self.head((x + self.second(x)).mean(1))


class AttentionPool(nn.Module):
    """As CLIP's ResNets end: torch's function of attention, with projections apart and their biases joined."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(dim, size) for size in (dim, dim, dim, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).permute(2, 0, 1)
        pooled, _ = F.multi_head_attention_forward(
            x.mean(0, keepdim=True), x, x, x.shape[-1], self.heads,
            in_proj_weight=None, in_proj_bias=torch.cat([self.q.bias, self.k.bias, self.v.bias]),
            bias_k=None, bias_v=None, add_zero_attn=False, dropout_p=0.0,
            out_proj_weight=self.out.weight, out_proj_bias=self.out.bias,
            use_separate_proj_weight=True, q_proj_weight=self.q.weight, k_proj_weight=self.k.weight,
            v_proj_weight=self.v.weight, training=self.training, need_weights=False,
        )  # fmt: skip
        return pooled[0]


class Resampler(nn.Module):
    """Learned queries that are normalised before they meet anything, and then read themselves and the image."""

    def __init__(self):
        super().__init__()
        self.stem, self.queries = nn.Conv2d(3, 12, 4, stride=4), nn.Parameter(torch.randn(1, 3, 12))
        self.norm, self.context, self.heads = nn.LayerNorm(12), nn.LayerNorm(12), 3
        self.q, self.kv, self.out, self.head = (nn.Linear(12, size) for size in (12, 24, 12, 5))

    def forward(self, x: Tensor) -> Tensor:
        queries, image = self.norm(self.queries), self.context(self.stem(x).flatten(2).transpose(1, 2))
        queries = queries.expand(len(x), -1, -1)
        both = torch.cat([image, queries], 1)
        parts = (self.q(queries), *self.kv(both).chunk(2, -1))
        q, k, v = (part.unflatten(-1, (self.heads, 4)).transpose(1, 2) for part in parts)
        read = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head((queries + self.out(read)).mean(1))


class Words(Tokens):
    """Tokens, which the image names, read two tables: one makes a width alone, one a stream with others."""

    def __init__(self):
        super().__init__(Attention(12, 3))
        self.words, self.parts, self.join = nn.Embedding(4, 12), nn.Embedding(4, 10), nn.Linear(10, 12)

    def forward(self, x: Tensor) -> Tensor:
        first, second = (x[:, :2].flatten(2)[..., :5] > 0).long().unbind(1)
        x = self.words(first + 2 * second) + self.position + self.join(self.parts(second + 2 * first))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


TOKEN_NETS = {
    "convnext": ConvNext,
    "attention": lambda: Tokens(Attention(12, 3), Attention(12, 2, fused=False), Attention(12, 4)),
    "embedded positions": EmbeddedPositions,
    "words": Words,
    "attention as wide as its input": lambda: Tokens(Attention(12, 3, flat=True), Attention(12, 3, flat=True)),
    "gains of heads": lambda: Tokens(GainsOfHeads(12, 3), GainsOfHeads(12, 4)),
    "separate attention": lambda: Tokens(SeparateAttention(12, 3, 5)),
    "einsum attention": lambda: Tokens(EinsumAttention(12)),
    "torch attention": lambda: Tokens(TorchAttention(12, 3), TorchAttention(12, 4, bias=False)),
    "torch encoder layer": EncoderLayers,
    "attention across": Pooled,
    "attention weights": WithWeights,
    "mixer": Mixer,
    "mixer of convolutions": ConvolvedMixer,
    "group norms": GroupNorms,
    "rms norm": RmsNormed,
    "gated": Gated,
    "split": Split,
    "one and three dimensions": OneAndThree,
    "interleaved": Interleaved,
    "rotary": lambda: Tokens(Turned(12, 3)),
    "asked table": lambda: Tokens(Asks(12, 3, 5)),
    "keeps biases": lambda: Tokens(KeepsBiases(12, 3, 5), KeepsBiases(12, 4, 5)),
    "cascaded": Cascaded,
    "own matrices": Matrices,
    "joined bias": lambda: Tokens(JoinedBias(12, 3)),
    "lengths by name": lambda: Tokens(NamedLengths(12, 4)),
    "lent": Lends,
    "scanned": Scanned,
    "between channels": BetweenChannels,
    "resampler": Resampler,
    "attention pool": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 2, 2), AttentionPool(12, 3)
    ),
}
