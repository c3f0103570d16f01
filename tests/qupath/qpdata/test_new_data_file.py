from dataclasses import replace

from qpnuclei.qupath.qpdata.data_file import DataFile
from qpnuclei.qupath.qpdata.new_data_file import new_data_file
from qpnuclei.slides.stains import DEFAULT_HE
from tests.qupath.qpdata.data_files import saved


def test_new_file_is_read_by_the_same_rules():
    stains = replace(DEFAULT_HE, background=(255.0, 254.0, 253.0))
    builder = {"builderType": "uri"}
    new = new_data_file(
        builder, "BRIGHTFIELD_H_E", stains, qupath_version="0.5.1", entry_property="p::1"
    )
    again = DataFile.parse(saved(new), "again")
    assert again.image_type == "BRIGHTFIELD_H_E"
    assert again.stains == stains
    assert DataFile.parse_header(saved(new), "again").stains == stains
    assert again.read().summary()["nObjects"] == 1
