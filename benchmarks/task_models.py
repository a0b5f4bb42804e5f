"""Networks for other tasks than classifying images, small, with random weights: dense prediction, detection, video."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PretrainedConfig

VIDEO = (
    "r3d_18",
    "mc3_18",
    "r2plus1d_18",
    "s3d",
    "swin3d_t",
)  # of torchvision, those that do not take minutes on a CPU
FRAMES = 16
SIZES = {
    "depth_anything": 56, "s3d": 224, "PAN-resnet18": 128,
    "DenseNet121-3d": 32, "SegResNet-3d": 32, "UNETR-3d": 32, "UNet-3d": 32,
}  # fmt: skip
SIZE = 64  # of an image, where nothing else is said
SMP = (  # of segmentation_models_pytorch: every decoder but DPT, and some encoders of other kinds
    "DeepLabV3-resnet18", "DeepLabV3Plus-resnet18", "FPN-resnet18", "Linknet-resnet18",
    "MAnet-resnet18", "PAN-resnet18", "PSPNet-resnet18", "Segformer-mit_b0", "UPerNet-resnet18",
    "Unet-densenet121", "Unet-dpn68", "Unet-efficientnet-b0", "Unet-mobilenet_v2", "Unet-mobileone_s0",
    "Unet-resnet18", "Unet-se_resnet50", "Unet-tu-convnext_atto", "Unet-vgg11_bn", "UnetPlusPlus-resnet18",
)  # fmt: skip
_NARROW = {"channels": (16, 32, 64, 128), "strides": (2, 2, 2)}
MONAI: dict[str, dict[str, Any]] = {  # of MONAI, for one grey channel, in three dimensions where the name says so
    "AttentionUnet": _NARROW,
    "BasicUNet": {"features": (16, 16, 32, 64, 128, 16)},
    "BasicUNetPlusPlus": {"features": (16, 16, 32, 64, 128, 16)},
    "DenseNet121-3d": {},
    "DynUNet": {  # nnU-Net
        "kernel_size": (3,) * 4, "strides": (1, 2, 2, 2), "upsample_kernel_size": (2,) * 3,
        "filters": (16, 32, 64, 128),
    },
    "HighResNet": {},
    "MedNeXt": {"init_filters": 16},
    "SegResNet-3d": {"init_filters": 8},
    "SwinUNETR": {"feature_size": 12},
    "UNETR-3d": {"img_size": 32, "feature_size": 8, "hidden_size": 96, "mlp_dim": 192, "num_heads": 4},
    "UNet": {**_NARROW, "num_res_units": 2},
    "UNet-3d": {**_NARROW, "num_res_units": 2},
    "VNet": {},
}  # fmt: skip
_TOKENS = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 128}
_DECODER = {
    "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_queries": 10, "use_timm_backbone": False,
    "use_pretrained_backbone": False,
}  # fmt: skip


class Answers(nn.Module):
    """Some of what a Hugging Face model answers, as a tuple of tensors."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images, or videos with the channels before the frames."""
        given = self.model(pixel_values=images.transpose(1, 2) if images.dim() == 5 else images)
        return tuple(getattr(given, name) for name in self.names)


def _resnet(**options: Any) -> PretrainedConfig:
    from transformers import ResNetConfig

    return ResNetConfig(
        depths=[2, 2, 2, 2], hidden_sizes=[16, 32, 64, 128], embedding_size=16, layer_type="basic",
        out_features=["stage1", "stage2", "stage3", "stage4"], **options,
    )  # fmt: skip


def _of(kind: str, config: str, *names: str, **options: Any) -> Callable[[], nn.Module]:
    """A model of Hugging Face by the names of its classes; options that are called make configs of their own."""

    def build() -> nn.Module:
        import transformers

        made = {name: value() if callable(value) else value for name, value in options.items()}
        return Answers(getattr(transformers, kind)(getattr(transformers, config)(**made)), names)

    return build


def _dinov2() -> PretrainedConfig:
    from transformers import Dinov2Config

    stages = [f"stage{number}" for number in range(1, 5)]
    return Dinov2Config(**_TOKENS, image_size=56, patch_size=14, out_features=stages, reshape_hidden_states=False)


def _detr() -> PretrainedConfig:
    from transformers import DetrConfig

    return DetrConfig(**_DECODER, backbone_config=_resnet())


def _rtdetr_resnet() -> PretrainedConfig:
    from transformers import RTDetrResNetConfig

    return RTDetrResNetConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[16, 32, 64, 128], embedding_size=16, layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip


def _pose() -> PretrainedConfig:
    from transformers import VitPoseBackboneConfig

    return VitPoseBackboneConfig(**_TOKENS, image_size=[64, 64], out_features=["stage4"], patch_size=[16, 16])


_NECK = {"neck_hidden_sizes": [16, 32, 64, 64], "fusion_hidden_size": 32}
_CLIP = {"image_size": 64, "patch_size": 16, "num_frames": FRAMES}
TASKS: dict[str, Callable[[], nn.Module]] = {
    "depth_anything": _of(
        "DepthAnythingForDepthEstimation", "DepthAnythingConfig", "predicted_depth", backbone_config=_dinov2,
        reassemble_hidden_size=64, patch_size=14, **_NECK,
    ),
    "detr": _of("DetrForObjectDetection", "DetrConfig", "logits", "pred_boxes", backbone_config=_resnet, **_DECODER),
    "dpt": _of(
        "DPTForDepthEstimation", "DPTConfig", "predicted_depth", image_size=64, backbone_out_indices=[0, 1, 2, 3],
        head_in_index=-1, **_NECK, **_TOKENS,
    ),
    "glpn": _of("GLPNForDepthEstimation", "GLPNConfig", "predicted_depth"),
    "maskformer": _of(
        "MaskFormerForInstanceSegmentation", "MaskFormerConfig", "class_queries_logits", "masks_queries_logits",
        backbone_config=_resnet, decoder_config=_detr, fpn_feature_size=32, mask_feature_size=32,
    ),
    "mobilenet_v2-segmentation": _of("MobileNetV2ForSemanticSegmentation", "MobileNetV2Config", "logits"),
    "mobilevit-segmentation": _of("MobileViTForSemanticSegmentation", "MobileViTConfig", "logits"),
    "rt_detr": _of(
        "RTDetrForObjectDetection", "RTDetrConfig", "logits", "pred_boxes", backbone_config=_rtdetr_resnet, d_model=64,
        encoder_in_channels=[32, 64, 128], encoder_hidden_dim=64, decoder_in_channels=[64, 64, 64], num_queries=10,
        decoder_layers=2, encoder_ffn_dim=64, decoder_ffn_dim=64, num_denoising=0,
    ),
    "segformer-segmentation": _of("SegformerForSemanticSegmentation", "SegformerConfig", "logits"),
    "swin2sr": _of(
        "Swin2SRForImageSuperResolution", "Swin2SRConfig", "reconstruction", embed_dim=32, depths=[2, 2],
        num_heads=[2, 2], image_size=64, window_size=8,
    ),
    "timesformer": _of("TimesformerForVideoClassification", "TimesformerConfig", "logits", **_CLIP, **_TOKENS),
    "upernet": _of(
        "UperNetForSemanticSegmentation", "UperNetConfig", "logits", backbone_config=_resnet, hidden_size=64,
        auxiliary_in_channels=64,
    ),
    "videomae": _of("VideoMAEForVideoClassification", "VideoMAEConfig", "logits", **_CLIP, **_TOKENS),
    "vitpose": _of("VitPoseForPoseEstimation", "VitPoseConfig", "heatmaps", backbone_config=_pose),
    "yolos": _of(
        "YolosForObjectDetection", "YolosConfig", "logits", "pred_boxes", image_size=[64, 64], num_detection_tokens=10,
        **_TOKENS,
    ),
}  # fmt: skip


def segmentation_model(name: str) -> nn.Module:
    """A network of segmentation_models_pytorch, `DECODER-ENCODER`."""
    import segmentation_models_pytorch as smp  # pyright: ignore[reportMissingImports]

    decoder, _, encoder = name.partition("-")
    return getattr(smp, decoder)(encoder, encoder_weights=None, classes=5)


def medical_model(name: str) -> nn.Module:
    """A network of MONAI, `NAME` or `NAME-3d`."""
    from monai.networks import nets  # pyright: ignore[reportMissingImports]

    kind, _, solid = name.partition("-")
    return getattr(nets, kind)(spatial_dims=3 if solid else 2, in_channels=1, out_channels=2, **MONAI[name])


def shape_of(name: str, size: int) -> tuple[int, ...]:
    """Of one input: videos have frames, MONAI's volumes a depth and one channel."""
    if name in MONAI:
        return (1, *[size] * (3 if name.endswith("-3d") else 2))
    frames = (FRAMES,) if name in (*VIDEO, "timesformer", "videomae") else ()
    return (3, *frames, size, size)
