TARGET = {"width": 128, "dropout": 0.1, "batch_size": 256, "weight": 1.0}
GUIDE = {"epochs": 20, "lr": 1e-2, "batch_size": 256}
TARGET_EPOCHS = 100
def versions(): return {}
