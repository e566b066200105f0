"""Search: exact by default, approximate where asked, over items of any modality that lie in one space."""
