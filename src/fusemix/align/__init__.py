"""The mathematics: mixup, loss, adapters, closed forms, metrics. The two modalities are x and y, as in the paper."""
