"""Lightning: a guided network on MNIST-1D, stopped, and resumed across the end of guidance."""

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import CSVLogger
from mnist1d.data import make_dataset
from torch.utils.data import DataLoader, TensorDataset

from pyguide.experiments.networks import DeepFCN, ResNet1D
from pyguide.integrations.lightning import GuidanceCallback

pl.seed_everything(1)  # make_dataset() generates 4000 training and 1000 test signals
x, y, x_test, y_test = map(torch.tensor, map(make_dataset().get, ("x", "y", "x_test", "y_test")))
train = DataLoader(TensorDataset(x.float(), y), batch_size=250, shuffle=True)
test = DataLoader(TensorDataset(x_test.float(), y_test), batch_size=1000)


class Classifier(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = DeepFCN(depth=6)

    def training_step(self, batch):
        return torch.nn.functional.cross_entropy(self.model(batch[0]), batch[1])

    def test_step(self, batch):
        self.log("accuracy", (self.model(batch[0]).argmax(dim=1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


guide, checkpoint = ResNet1D(width=8), None  # its weights are in no checkpoint
options = {"accumulate_grad_batches": 2, "log_every_n_steps": 1}
for epochs in (2, 5):  # of 8 optimizer steps
    options |= {"callbacks": [GuidanceCallback(guide, release_at=24)], "logger": CSVLogger("logs")}
    trainer = pl.Trainer(max_epochs=epochs, **options)
    trainer.fit(Classifier(), train, ckpt_path=checkpoint)
    checkpoint = trainer.checkpoint_callback.best_model_path
trainer.test(dataloaders=test, ckpt_path=checkpoint)
