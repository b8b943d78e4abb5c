"""FedCLIP-style: an attention adapter on frozen image features, classes as texts (arXiv 2302.13485).

A class is the text whose feature the adapted image feature is nearest to; the adapter alone is trained and
averaged. With I the image feature and T_c the text feature of class c:

    a(I) = softmax(W_1 tanh(W_0 I)),  I* = a(I) * I  (element by element)
    logits_c = s cos(B I*, T_c),  L = CE(logits, y),  theta = sum_i n_i theta_i / n

Reduced, because a federation carries features and neither CLIP nor the names of classes:

- ``T_c`` is the mean text feature of the class's training rows, where the paper embeds "a picture of a c".
  The server forms it from the clients' class sums once, before the first round; no round sends it, as none
  sends CLIP's text encoder, and the bytes of the rounds leave it out.
- Image and text features need not share a space, as CLIP's do: B is a linear map into that of the texts,
  trained with the adapter. ``shared_space: true`` leaves it out, for features of CLIP.
- The loss contrasts an image with all classes. The paper contrasts it with the prompts of its batch, where
  two images of a class are each other's negatives.

The image is a task's first modality, the text its last; in a task of one modality both are the same. Rows
without image do not count in training, and at test all of them get one class: texts stand for classes alone.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor

from mmfl_fast import nn, ops
from mmfl_fast.algorithms.frozen_features import FrozenFeatures, FrozenFeaturesConfig, tokens
from mmfl_fast.algorithms.task_models import TaskModels
from mmfl_fast.data import Federation, Task
from mmfl_fast.federation import Batch, ClientState, Context, Inputs, ParameterTable


class FedCLIPConfig(FrozenFeaturesConfig):
    """Options of the FedCLIP-style baseline."""

    scale: float = Field(100.0, gt=0, description="s, of the similarities; CLIP's own by default")
    shared_space: bool = Field(False, description="image and text features share a space: no linear map")


class FedCLIP(FrozenFeatures):
    """An adapter of image features, averaged; the texts of the classes stay as they are."""

    Config = FedCLIPConfig
    personal = ("classes",)

    def initial_models(self, federation: Federation, generator: torch.Generator) -> list[ClientState]:
        """One adapter per task.

        Raises:
            ValueError: ``shared_space``, but a task's image and text features differ in size.
        """
        return [self._adapter(task, generator) for task in federation.tasks]

    def setup(self, federation: Federation, generator: torch.Generator) -> TaskModels:
        """One adapter per task, and the classes' text features with every client."""
        start: TaskModels = super().setup(federation, generator)
        texts = [{"classes.text": class_texts(task)} for task in federation.tasks]
        return replace(start, personal=ParameterTable.of_kinds(texts, federation.clients.task_numbers))

    @property
    def trained(self) -> tuple[str, ...]:
        """The adapter."""
        return ("adapter",)

    def predict(self, params: ClientState, inputs: Inputs) -> Tensor:
        """Logits ``[B, C]``: scaled cosines of the adapted images and the classes' texts."""
        image = tokens(next(iter(inputs.values.values()))).mean(dim=1)
        hidden = nn.linear(params, "adapter.0", image).tanh()
        adapted = nn.linear(params, "adapter.1", hidden).softmax(dim=1) * image
        if not self.config.shared_space:
            adapted = nn.linear(params, "adapter.map", adapted)
        cosines = nn.unit_rows(adapted) @ nn.unit_rows(params["classes.text"]).T
        scale: float = self.config.scale
        return scale * cosines

    def loss(self, params: ClientState, batch: Batch, context: Context) -> Tensor:
        """Cross-entropy over the rows that count and have an image."""
        del context
        labels = torch.where(batch.inputs.present[:, 0], self.counted_labels(batch), -100)
        return nn.cross_entropy(self.predict(params, batch.inputs), labels)

    def _adapter(self, task: Task, generator: torch.Generator) -> ClientState:
        image, text = (tokens(x).shape[-1] for x in _image_and_text(task))
        adapter = {
            **nn.init_linear("adapter.0", image, image, generator),
            **nn.init_linear("adapter.1", image, image, generator),
        }
        if not self.config.shared_space:
            return {**adapter, **nn.init_linear("adapter.map", image, text, generator)}
        if image != text:
            raise ValueError(
                f"shared_space: features of task {task.name!r} must be of one size; got {image} of "
                f"{task.modalities[0]} and {text} of {task.modalities[-1]}"
            )
        return adapter


def class_texts(task: Task) -> Tensor:
    """Mean text feature of each class over the training rows that have a text, ``[C, D]``.

    Zero for a class without such a row, whose similarity to everything is 0.
    """
    rows = task.is_train.to(task.labels.device) & task.present[:, -1]
    text = tokens(_image_and_text(task)[1]).mean(dim=1)
    return ops.class_prototypes(text[rows], task.labels[rows], task.num_classes)[0]


def _image_and_text(task: Task) -> tuple[Tensor, Tensor]:
    values = list(task.inputs.values())
    return values[0], values[-1]
