# The template's Python environment comes first, for root and for sandbox.
export VIRTUAL_ENV=/opt/venv
case ":$PATH:" in
    *:/opt/venv/bin:*) ;;
    *) PATH=/opt/venv/bin:$PATH ;;
esac
export PATH
export LANG="${LANG:-C.UTF-8}"
