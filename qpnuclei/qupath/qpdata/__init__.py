"""The codec of ``data.qpdata``: a Java object stream with the objects of one image.

It reads and writes bytes and knows nothing of projects: `qpnuclei.qupath.native` and
`qpnuclei.qupath.paquo` use it.

Read these first: `data_file` describes the content of a ``data.qpdata``, `path_objects` the layout
of an object in it, and `qpnuclei.qupath.native.NativeImage.write` how a file is edited. From the
bytes up, the modules are:

1. `java_nodes`, `java_parser`, `java_writer`: convert any Java object stream to a graph of nodes
   and back, byte for byte. Handles get new numbers when a graph is written.
2. `record_shapes`, `record_packer`, `packed_records`: there may be millions of similar detections,
   and very many annotations. Those without children are recognised while the stream is parsed, and
   stay byte ranges of it until their values are needed. `new_records` writes new ones from columns
   (`record_columns`). The loops over all records are in `kernels`.
3. `java_classes`, `java_fields`, `java_instances`: names and descriptors of the Java and QuPath
   classes, fields of their objects, new instances.
4. `path_objects`, `path_classes`: the tree of QuPath's objects as views of nodes.
5. `values`: values of one object, or of all records with the same shape. `rois`,
   `measurement_lists` and `detection_properties` read them, `detection_batches` divides objects
   into those that are read together. `detections` has them as columns, made on first access,
   `annotations` as objects.
6. `new_detections`: the additions of an `Edit`, group by group. They are written from tables, and
   compared with the saved file.
7. `hierarchy`, `workflow`, `image_properties`: the items of the file that are read and edited.
8. `data_file`: the whole file: read, remove, add, write. `new_data_file` makes new ones.

Unknown objects stay nodes and are written back unchanged. Memory is needed for the bytes of one
file (about 400 MB for a million nuclei), 24 bytes per detection in it, one group of new detections,
and the UUIDs of all new detections.
"""
