"""QuPath's GeoJSON: read and write files, and import and export objects of a project.

`objects` and `problems` have the classes. `reading` and `writing` stream files object by object, in
constant memory: `json_stream` reads the features, `features` makes objects of them. `exporting` and
`importing` are ``qpnuclei geojson export`` and ``import``; `file_names` finds the image of a file.

QuPath 0.3 to 0.7 read the files that are written here. The versions differ: 0.3 needs
``object_type`` and measurements as a list; later versions need ``objectType`` and a colour for
every class; no spelling of NaN is read by all versions; and 0.7 rejects a whole file for one
invalid ring. QuPath 0.4 to 0.7 read ``.geojson.gz``; 0.3 silently reads no objects from it, so
unpack it first.
"""
