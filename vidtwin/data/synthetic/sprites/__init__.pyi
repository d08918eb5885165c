from vidtwin.data.synthetic.sprites.config import SHEET_FOLDERS, SpritesOptions

__all__ = ["SHEET_FOLDERS", "SpritesOptions"]
