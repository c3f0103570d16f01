"""The codec of ``data.qpdata``: a Java object stream with the objects of one image.

It reads and writes bytes and knows nothing of projects: `qpnuclei.qupath.native` and
`qpnuclei.qupath.paquo` use it.

Where to begin: `data_file` says what a ``data.qpdata`` holds, `path_objects` how an object in it is
laid out, and `qpnuclei.qupath.native.NativeImage.write` how one is edited. From the bytes up:

1. `java_nodes`, `java_parser`, `java_writer`: any Java object stream to a graph of nodes and back,
   byte for byte. Handles are numbered anew when a graph is written.
2. `record_shapes`, `record_packer`, `packed_records`: detections come by the million and are alike.
   They are recognised while the stream is parsed and stay byte ranges of it, until someone asks for
   what they hold. `new_records` writes more of them, from columns (`record_columns`). The loops
   over all of them are in `kernels`.
3. `java_classes`, `java_fields`, `java_instances`: names and descriptors of the Java and QuPath
   classes, fields of their objects, new instances.
4. `path_objects`, `path_classes`: the tree of QuPath's objects as views of nodes.
5. `values`: values of one object, or of all records alike. `rois`, `measurement_lists` and
   `detection_properties` read them; `detections` has them as columns, each made when it is first
   asked for, from `detection_batches`. `annotations` and `stains` are read one by one.
6. `new_detections`: what an `Edit` adds, group by group: written from tables, and compared with
   what reads back.
7. `hierarchy`, `workflow`, `image_properties`: the items of the file that are read and edited.
8. `data_file`: the whole file: read, remove, add, write. `new_data_file` makes new ones.

Unknown objects stay nodes and are written back unchanged. Memory holds the bytes of one file (about
400 MB for a million nuclei), 24 bytes per detection in it, one group of new detections, and the
UUIDs of all new detections.
"""
