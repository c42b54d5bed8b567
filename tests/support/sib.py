"""Files of labelled texts as SIB-200 has them."""


def write(folder, language, split, rows):
    folder.mkdir(exist_ok=True)
    lines = ["index_id\tcategory\ttext", *("\t".join(row) for row in rows)]
    path = folder / f"{language}.{split}.tsv"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path
