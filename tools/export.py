from norton_det.cli.main import main_of

if __name__ == "__main__":
    raise SystemExit(main_of("export"))
