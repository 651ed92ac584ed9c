"""The synthetic face world: people, clips and pictures with exact Action Unit labels, from a seed.

``person.py`` who somebody is, ``expression.py`` what a face does over time, ``scene.py`` light, camera, background and degradation,
``render.py`` pictures from meshes (Warp, CPU or CUDA), ``head.py`` the 3D head all of them share, ``world.py`` the door to it all.
"""
